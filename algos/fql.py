"""FQL: flow Q-learning (Park, Li, Levine 2025, arXiv 2502.02538), and cloning by flow matching alone.

A flow learns to turn noise into the dataset's actions, however many modes they have. A second network maps the same
noise to an action in one step: it is held near the flow's action and climbs the critics, so that nothing is ever
differentiated through the flow's steps. It is the policy.

Presets: `fql` (default) and `flow_bc`, which acts by the flow and has no critics; both with the authors' constants.
Equations, deviations, settings, results: docs/algorithms/fql.md.

Run: python algos/fql.py --dataset hoard/pendulum/mixed-v0 --seed 0
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import ReplayBuffer
from hoard.runners import History, Run, main
from hoard.runners.nn import (
    ObsNormalizer,
    compiled,
    frozen_copy,
    gradient_step,
    linear,
    normal_like,
    polyak_update,
)


@dataclass
class Config:
    """FQL, offline and fine-tuned online. Defaults follow the authors' released code."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    data: str = "all"  # all of it, or top=F, weight=return, weight=advantage, hubl=rank:A; see docs/datasets.md
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 1_000_000  # gradient updates on the dataset
    online_steps: int = 0  # environment steps after them, one update each; *_every count steps there
    guide: str = "none"  # or a finished run's folder, whose policy begins every episode; see docs/protocol.md
    log_every: int = 1000  # updates or steps per row of training metrics
    eval_every: int = 5000  # updates or steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # updates or steps between checkpoints; online they wait for the end of the episode
    # --- optimisation ---
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # widths of the hidden layers of every network
    layer_norm: bool = True  # after each hidden layer of the critics, behind the GELU
    # --- data ---
    normalize_obs: bool = False  # standardise observations inside the networks
    offline_ratio: float | None = None  # share of the dataset in online batches; none draws from everything alike
    # --- FQL ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    target_q: Literal["mean", "min"] = "mean"  # of the two target critics
    alpha: float = 10.0  # weight of staying near the flow's action
    normalize_q: bool = False  # divide the policy's Q by its mean size in the batch, as TD3+BC does
    flow_steps: int = 10  # Euler steps from noise to action
    policy: Literal["one_step", "flow"] = "one_step"  # flow: cloning alone, without critics

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if self.alpha < 0 or self.flow_steps < 1:
            raise ValueError(f"alpha {self.alpha} must not be negative, flow_steps {self.flow_steps} at least 1")
        if self.policy == "flow" and self.online_steps:
            raise ValueError(f"online_steps {self.online_steps}: policy flow clones, and would clone its own actions")


PRESETS: dict[str, dict[str, Any]] = {
    "fql": {},
    "flow_bc": {"policy": "flow"},
}


# --- networks ---


class Flow(nn.Module):
    """Velocity of the action at time t in [0, 1] on its way from noise to the dataset's action."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.steps, self.action_dim = cfg.flow_steps, action_dim
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim + action_dim + 1, *cfg.hidden, action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator, "xavier") for a, b in pairwise(sizes))

    def forward(self, obs: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """(B, obs_dim), (B, action_dim), (B, 1) -> (B, action_dim)."""
        return mlp(self.layers, torch.cat([self.normalize(obs), x, t], dim=-1))

    def solve(self, obs: Tensor, noise: Tensor) -> Tensor:
        """The action that `noise` flows to, by Euler's method, cut to [-1, 1]."""
        x = noise
        for step in range(self.steps):
            x = x + self(obs, x, x.new_full((len(x), 1), step / self.steps)) / self.steps
        return x.clamp(-1, 1)

    def act(self, obs: Tensor, history: History) -> Tensor:
        """The flow's action for a draw of noise."""
        return self.solve(obs, gaussian(obs, self.action_dim, history.generator))

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The flow's action for a draw of noise."""
        return self.solve(obs, gaussian(obs, self.action_dim, generator))


class Actor(nn.Module):
    """The policy: an action for an observation and a draw of noise, in one step."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim + action_dim, *cfg.hidden, action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator, "xavier") for a, b in pairwise(sizes))

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        """(B, obs_dim), (B, action_dim) -> (B, action_dim), not bounded."""
        return mlp(self.layers, torch.cat([self.normalize(obs), noise], dim=-1))

    def act(self, obs: Tensor, history: History) -> Tensor:
        """The action for a draw of noise, cut to [-1, 1]."""
        return self.explore(obs, history.generator)

    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """The action for a draw of noise, cut to [-1, 1]; not differentiated."""
        with torch.no_grad():
            return self(obs, gaussian(obs, self.action_dim, generator)).clamp(-1, 1)


class Critic(nn.Module):
    """Two Q functions of (obs, action), returned as (2, B). Layer k of both is one weight (2, in, out)."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        n, device = 2, generator.device
        self.normalize = ObsNormalizer(obs_dim, device)
        sizes = list(pairwise([obs_dim + action_dim, *cfg.hidden, 1]))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(n, a, b, device=device)) for a, b in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n, 1, b, device=device)) for _, b in sizes)
        for weight in self.weights:
            for member in weight:
                nn.init.xavier_uniform_(member, generator=generator)
        widths = cfg.hidden if cfg.layer_norm else ()  # each member's LayerNorm has its own scale and shift
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(n, 1, width, device=device)) for width in widths)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(n, 1, width, device=device)) for width in widths)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([self.normalize(obs), action], dim=-1).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
                x = F.gelu(x, approximate="tanh")
                if len(self.scales):
                    x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * self.scales[k] + self.shifts[k]
        return x.squeeze(-1)


def mlp(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Linear layers with GELUs between them."""
    for layer in layers[:-1]:
        x = F.gelu(layer(x), approximate="tanh")
    return layers[-1](x)


def gaussian(like: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise, (len(like), dim)."""
    return torch.randn(len(like), dim, generator=generator, device=like.device, dtype=like.dtype)


# --- losses: a scalar and detached metrics ---


def with_noise(batch: dict[str, Tensor], cfg: Config, generator: torch.Generator) -> dict[str, Tensor]:
    """The batch, and all that an update draws: noise of actions at s' and s, noise and time of the flow's loss."""
    names = ["next_noise", "noise"] if cfg.policy == "one_step" else []
    drawn = {name: normal_like(batch["action"], generator) for name in [*names, "flow_noise"]}
    reward = batch["reward"]
    drawn["flow_time"] = torch.rand(len(reward), 1, generator=generator, device=reward.device, dtype=reward.dtype)
    return batch | drawn


def flow_loss(flow: Flow, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the velocity on the straight line from noise to the dataset's action, at a uniform time."""
    obs, action, noise, t = (batch[name] for name in ("obs", "action", "flow_noise", "flow_time"))
    loss = (flow(obs, (1 - t) * noise + t * action, t) - (action - noise)).square().mean()
    return loss, {"losses/flow": loss.detach()}


def critic_loss(
    critic: Critic, target: Critic, actor: Actor, batch: dict[str, Tensor], cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        next_q = target(batch["next_obs"], actor(batch["next_obs"], batch["next_noise"]).clamp(-1, 1))
        value = next_q.mean(dim=0) if cfg.target_q == "mean" else next_q.amin(dim=0)
        backup = batch["reward"] + cfg.discount * (1 - batch["terminated"]) * value
    q = critic(batch["obs"], batch["action"])
    loss = (q - backup).square().mean()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(
    actor: Actor, flow: Flow, critic: Critic, obs: Tensor, noise: Tensor, cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared distance to the flow's action for the same noise, times alpha, less the mean Q of both heads."""
    with torch.no_grad():
        cloned = flow.solve(obs, noise)
    action = actor(obs, noise)
    distance = (action - cloned).square().mean()
    q = critic(obs, action.clamp(-1, 1)).mean(dim=0)
    climb = -q.mean()
    if cfg.normalize_q:
        climb = climb / q.detach().abs().mean()
    loss = cfg.alpha * distance + climb
    return loss, {"losses/actor": loss.detach(), "losses/mse": distance.detach()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    discount = cfg.discount if cfg.policy == "one_step" else None  # the flow alone has no values
    buffer = ReplayBuffer(dataset, device, cfg.online_steps, discount=discount)
    flow = Flow(cfg, dataset.obs_dim, dataset.action_dim, generator)
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        for net in (flow, actor, critic):
            net.normalize.fit(mean, std + 1e-3)
    target = frozen_copy(critic)
    networks = {"flow": flow, "actor": actor, "critic": critic}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True) for name, net in networks.items()}
    policy = flow if cfg.policy == "flow" else actor

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        if cfg.policy == "one_step":
            # Q: towards r + discount * the target Q of the policy's next action
            loss, metrics = critic_loss(critic, target, actor, batch, cfg)
            gradient_step(optimizers["critic"], loss)
            # policy: towards actions of high Q that are near the flow's
            loss, of_actor = actor_loss(actor, flow, critic, batch["obs"], batch["noise"], cfg)
            gradient_step(optimizers["actor"], loss)
            metrics |= of_actor
            polyak_update(target, critic, cfg.target_tau)
        # flow: from noise to the dataset's actions
        loss, of_flow = flow_loss(flow, batch)
        gradient_step(optimizers["flow"], loss)
        return metrics | of_flow

    update = compiled(update, optimizers.values(), cfg.compile)
    env = run.training_env() if cfg.online_steps else None
    run.register(networks=networks, target=target, optimizers=optimizers, buffer=buffer)
    for _ in run.loop(cfg.updates):
        run.log(update(with_noise(buffer.sample(cfg.batch_size, generator), cfg, generator)))
        if run.evaluation_due:
            run.evaluate(policy)
    if env is None:
        return

    for _ in run.online(cfg.online_steps):
        buffer.add(*env.step(policy.explore(env.obs, generator)))
        batch = buffer.sample(cfg.batch_size, generator, cfg.offline_ratio)
        run.log(update(with_noise(batch, cfg, generator)))
        if run.evaluation_due:
            run.evaluate(policy)


# The authors' alpha goes by the scale of Q, 3 to 30,000 (from memory); with normalize_q one near 1 is at home.
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "alpha": ("log", 0.03, 3e4),
    "target_tau": ("log", 2e-3, 5e-2),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)

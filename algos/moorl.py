"""MOORL: meta offline-online RL (Chaudhary, Mondal, Behera, TMLR 2025, arXiv 2506.09574), from its pseudo-code.

SAC inside a Reptile loop. One burst: draw one source, the dataset or the replay; from the meta-weights take K SAC steps
on batches of that source alone; move the meta-weights of actor and critic a share eta_meta towards where they led.

The pseudo-code fixes that much; every other choice and every number is ours (docs/algorithms/moorl.md lists them, with
equations and results). Options take the method apart: `sampling mixed`, `eta_meta 1`, `inner_steps`.

Run: python algos/moorl.py --dataset hoard/pendulum/mixed-v0 --online-steps 20000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import ReplayBuffer
from hoard.runners import Run, main
from hoard.runners.nn import (
    compiled,
    forget_steps,
    frozen_copy,
    gradient_step,
    linear,
    normal_like,
    polyak_update,
)


@dataclass
class Config:
    """MOORL: online with a dataset at hand. All defaults are ours, see docs/algorithms/moorl.md."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    data: str = "all"  # all of it, or top=F, weight=return, weight=advantage, hubl=rank:A; see docs/datasets.md
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 0  # bursts on the dataset before the first environment step
    online_steps: int = 250_000  # environment steps after them; *_every count steps there
    guide: str = "none"  # or a finished run's folder, whose policy begins every episode; see docs/protocol.md
    log_every: int = 1000  # updates or steps per row of training metrics
    eval_every: int = 5000  # updates or steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # updates or steps between checkpoints; online they wait for the end of the episode
    # --- optimisation ---
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of every network
    # --- data ---
    sampling: Literal["burst", "mixed"] = "burst"  # one source per burst, or both in every batch
    p_offline: float = 0.5  # burst: chance of the dataset; certain until the replay holds a batch
    offline_ratio: float = 0.5  # mixed: share of the dataset in every batch
    offline_terminals: bool = True  # false bootstraps through the dataset's terminations
    reward_scale: float = 1.0  # rewards trained on are reward_scale * (r + reward_shift), in data and replay alike
    reward_shift: float = 0.0  # see reward_scale
    # --- SAC ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    start_steps: int = 5000  # uniformly random actions at first, without updates
    init_alpha: float = 1.0  # temperature at the start
    target_entropy: float = -1.0  # of the policy, in nats per action dimension
    critics: int = 2  # size of the ensemble
    target_min: int = 2  # target critics, drawn at each step, whose minimum is the target
    actor_q: Literal["min", "mean"] = "min"  # of all critics: what the actor maximises
    layer_norm: bool = False  # after each hidden layer of the critics, before the ReLU
    backup_entropy: bool = True  # whether the target contains the entropy of the next action
    # --- MOORL ---
    inner_steps: int = 5  # K, critic steps of a burst
    bursts_per_step: int = 1  # bursts after each environment step: 5 with K = 1 make as many updates as 1 with K = 5
    eta_meta: float = 0.5  # share of the way that the meta-weights follow; 1 is no meta-learning
    actor_steps: Literal["every", "last"] = "every"  # critic steps of a burst that are followed by an actor step
    act_with: Literal["meta", "fast"] = "meta"  # actor that acts and is evaluated; fast: as the burst left it
    reuse_batch: bool = False  # K steps on one batch
    reset_adam: bool = False  # forget Adam's moments at the start of a burst
    target_mode: Literal["fast_every_step", "meta_once_per_burst"] = "fast_every_step"  # what the target follows
    alpha_mode: Literal["tuned", "meta", "fixed"] = "tuned"  # meta: tuned, and averaged as the networks are

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if "hubl=" in self.data and not self.offline_terminals:
            raise ValueError("data hubl says where values are bootstrapped, so offline_terminals must be true")
        if not 1 <= self.target_min <= self.critics:
            raise ValueError(f"target_min {self.target_min}: must lie between 1 and critics = {self.critics}")
        if not 0 <= self.p_offline <= 1:
            raise ValueError(f"p_offline {self.p_offline}: must lie between 0 and 1")
        if self.bursts_per_step < 1:
            raise ValueError(f"bursts_per_step {self.bursts_per_step}: at least 1")
        if self.inner_steps < 1 or not 0 < self.eta_meta <= 1:
            raise ValueError(
                f"inner_steps {self.inner_steps}: at least 1; eta_meta {self.eta_meta}: above 0, at most 1"
            )


PRESETS: dict[str, dict[str, Any]] = {"moorl": {}}
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


# --- networks ---


class Actor(nn.Module):
    """A Gaussian squashed by tanh to [-1, 1], its standard deviation dependent on the state."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [obs_dim, *cfg.hidden, 2 * action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator, "xavier") for a, b in pairwise(sizes))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std before the tanh, each (B, action_dim)."""
        x = obs
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        mean, log_std = self.layers[-1](x).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A reparameterised action for standard normal noise, both (B, action_dim), and its log-density, (B,)."""
        mean, log_std = self(obs)
        return squash(mean, log_std, noise)

    def act(self, obs: Tensor) -> Tensor:
        """The image of the mean, tanh(mean)."""
        return torch.tanh(self(obs)[0])

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sampled action."""
        mean, log_std = self(obs)
        return squash(mean, log_std, normal_like(mean, generator))[0]


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std * noise) and its log-density; log(1 - tanh(u)^2) in the form that does not overflow."""
    u = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), log_prob.sum(dim=-1)


class Critic(nn.Module):
    """E Q functions of (obs, action), returned as (E, B). Layer k of all is one weight (E, in, out)."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        n, device = cfg.critics, generator.device
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
        x = torch.cat([obs, action], dim=-1).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
                if len(self.scales):
                    x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * self.scales[k] + self.shifts[k]
                x = torch.relu_(x)
        return x.squeeze(-1)


class Alpha(nn.Module):
    """The temperature; its logarithm is learnt."""

    def __init__(self, start: float, device: torch.device) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start), device=device))

    def forward(self) -> Tensor:
        return self.log.exp()


# --- losses: a scalar and detached metrics ---


def with_noise(batch: dict[str, Tensor], cfg: Config, generator: torch.Generator) -> dict[str, Tensor]:
    """The batch, and what a critic step draws: noise of the policy's next action, and which target critics to ask."""
    drawn = {"next_noise": normal_like(batch["action"], generator)}
    if cfg.target_min < cfg.critics:
        order = torch.randperm(cfg.critics, generator=generator, device=generator.device)
        drawn["asked"] = order[: cfg.target_min]
    return batch | drawn


def critic_loss(
    critic: Critic,
    target: Critic,
    actor: Actor,
    alpha: Tensor,
    batch: dict[str, Tensor],
    cfg: Config,
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        next_action, log_prob = actor.sample(batch["next_obs"], batch["next_noise"])
        next_q = target(batch["next_obs"], next_action)
        if cfg.target_min < cfg.critics:
            next_q = next_q[batch["asked"]]
        value = next_q.amin(dim=0)
        if cfg.backup_entropy:
            value = value - alpha * log_prob
        backup = batch["reward"] + cfg.discount * (1 - batch["terminated"]) * value
    q = critic(batch["obs"], batch["action"])
    loss = (q - backup).square().mean()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """`q` (E, B) and `log_prob` (B,) of the actor's own actions."""
    q = q.amin(dim=0) if cfg.actor_q == "min" else q.mean(dim=0)
    loss = (alpha * log_prob - q).mean()
    return loss, {"losses/actor": loss.detach(), "policy/entropy": -log_prob.detach().mean()}


def alpha_loss(alpha: Tensor, entropy: Tensor, target_entropy: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Its descent raises the temperature while the entropy is below its target."""
    loss = alpha * (entropy - target_entropy)
    return loss, {"losses/alpha": loss.detach(), "policy/alpha": alpha.detach()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    scale, shift = cfg.reward_scale, cfg.reward_shift
    buffer = ReplayBuffer(
        dataset,
        device,
        cfg.online_steps,
        clip_actions=1e-5,
        reward_scale=scale,
        reward_shift=shift,
        discount=cfg.discount,
    )
    if not cfg.offline_terminals:
        buffer.terminated.zero_()  # holds the dataset's only: nothing is online yet
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    alpha = Alpha(cfg.init_alpha, device)
    target = frozen_copy(critic)
    networks = {"actor": actor, "critic": critic, "alpha": alpha}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True) for name, net in networks.items()}
    meta = {name: frozen_copy(net) for name, net in networks.items()}
    averaged = networks if cfg.alpha_mode == "meta" else ("actor", "critic")
    acting = meta["actor"] if cfg.act_with == "meta" else actor

    def update_critic(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # Q: towards r + discount * (the smallest of a few target Q of the policy's next action + its entropy bonus)
        loss, metrics = critic_loss(critic, target, actor, alpha().detach(), batch, cfg)
        gradient_step(optimizers["critic"], loss)
        if cfg.target_mode == "fast_every_step":
            polyak_update(target, critic, cfg.target_tau)
        return metrics

    def update_actor(obs: Tensor, noise: Tensor) -> dict[str, Tensor]:
        # policy: towards actions of high Q and high entropy
        action, log_prob = actor.sample(obs, noise)
        loss, metrics = actor_loss(critic(obs, action), log_prob, alpha().detach(), cfg)
        gradient_step(optimizers["actor"], loss)
        # temperature: towards the target entropy
        loss, of_alpha = alpha_loss(alpha(), metrics["policy/entropy"], cfg.target_entropy * dataset.action_dim)
        if cfg.alpha_mode != "fixed":
            gradient_step(optimizers["alpha"], loss)
        return metrics | of_alpha

    def update(offline_ratio: float) -> dict[str, Tensor]:
        """One burst: K steps from the meta-weights on batches with this share of the dataset, then the outer update."""
        # start from the meta-weights
        for name in averaged:
            polyak_update(networks[name], meta[name], 1.0)
        if cfg.reset_adam:
            for optimizer in optimizers.values():
                forget_steps(optimizer)
        # K steps of SAC
        for k in range(cfg.inner_steps):
            if k == 0 or not cfg.reuse_batch:
                batch = buffer.sample(cfg.batch_size, generator, offline_ratio)
            metrics = update_critic(with_noise(batch, cfg, generator))
            if k == cfg.inner_steps - 1 or cfg.actor_steps == "every":
                metrics |= update_actor(batch["obs"], normal_like(batch["action"], generator))
        # move the meta-weights towards where they led
        for name in averaged:
            polyak_update(meta[name], networks[name], cfg.eta_meta)
        if cfg.target_mode == "meta_once_per_burst":
            polyak_update(target, meta["critic"], cfg.target_tau)
        source = {1.0: "offline", 0.0: "online"}.get(offline_ratio, "mixed")
        return metrics | {f"values/q_{source}": metrics["values/q"]}

    update_critic = compiled(update_critic, [optimizers["critic"]], cfg.compile)
    update_actor = compiled(update_actor, [optimizers["actor"], optimizers["alpha"]], cfg.compile)

    # Drawn ahead of training: asking the device for one draw at each step would wait for it.
    draws = torch.rand(cfg.online_steps, cfg.bursts_per_step, generator=generator, device=device)
    from_dataset = (draws < cfg.p_offline).tolist()

    def offline_ratio(burst: int) -> float:
        """Share of the dataset in the batches of this environment step's burst 0, 1, ..."""
        if cfg.sampling == "mixed":
            return cfg.offline_ratio
        too_few = buffer.online_size < cfg.batch_size and cfg.p_offline > 0
        return float(too_few or from_dataset[run.env_step - 1][burst])

    env = run.training_env() if cfg.online_steps else None
    run.register(networks=networks, target=target, meta=meta, optimizers=optimizers, buffer=buffer)
    for _ in run.loop(cfg.updates):
        run.log(update(offline_ratio=1.0))
        if run.evaluation_due:
            run.evaluate(acting)
    if env is None:
        return

    for _ in run.online(cfg.online_steps):
        learning = run.env_step >= cfg.start_steps
        action = acting.explore(env.obs, generator) if learning else env.random_action(generator)
        buffer.add(*env.step(action))
        if learning:
            for burst in range(cfg.bursts_per_step):
                run.log(update(offline_ratio(burst)))
        if run.evaluation_due:
            run.evaluate(acting)


# The paper's K is 1, 5 and 10, its eta_meta 0.1, 0.5, 0.9 and 1.
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "inner_steps": ("int", 1, 10),
    "eta_meta": ("uniform", 0.1, 1.0),
    "p_offline": ("uniform", 0.1, 0.9),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)

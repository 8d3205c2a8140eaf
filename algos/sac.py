"""SAC from scratch (Haarnoja et al. 2018): the online baseline of the hybrid protocol.

Soft actor-critic with a tuned temperature, in the environment of a dataset and without its data, which only name the
environment and the reference scores. The update is stable-baselines3's, and so are the defaults, except for the random
first steps. Truncated episodes bootstrap, terminated ones do not.

Equations, deviations, results: docs/algorithms/sac.md.

Run: python algos/sac.py --dataset hoard/pendulum/mixed-v0 --online-steps 20000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hoard.datasets import ReplayBuffer
from hoard.runners import Run, main
from hoard.runners.nn import compiled, frozen_copy, gradient_step, linear, normal_like, polyak_update


@dataclass
class Config:
    """SAC from scratch, in the environment of a dataset. Defaults follow stable-baselines3."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 0  # offline updates: there are none, anything but 0 is refused
    online_steps: int = 100_000  # environment steps; *_every count steps there
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
    # --- SAC ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    start_steps: int = 5000  # uniformly random actions at first, without updates
    updates_per_step: int = 1  # gradient updates per environment step
    alpha: float | None = None  # fixed temperature; none tunes it to the target entropy
    init_alpha: float = 1.0  # temperature at the start, where it is tuned
    target_entropy: float = -1.0  # of the policy, in nats per action dimension

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if self.updates:
            raise ValueError(f"updates {self.updates}: SAC has no offline phase; use updates 0 and online_steps")
        if self.alpha is not None and self.alpha < 0:
            raise ValueError(f"alpha {self.alpha}: must not be negative")


PRESETS: dict[str, dict[str, Any]] = {"sac": {}}
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


# --- networks ---


class Actor(nn.Module):
    """A Gaussian squashed by tanh to [-1, 1], its standard deviation dependent on the state."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [obs_dim, *cfg.hidden, 2 * action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator, "torch") for a, b in pairwise(sizes))

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
    """tanh(mean + std * noise) and its log-density, where 1e-6 keeps log(1 - action^2) finite (stable-baselines3's)."""
    action = torch.tanh(mean + log_std.exp() * noise)
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - torch.log(1 - action.square() + 1e-6)
    return action, log_prob.sum(dim=-1)


class Critic(nn.Module):
    """Two Q functions of (obs, action), returned as (2, B). Layer k of both is one weight (2, in, out)."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        n, device = 2, generator.device
        sizes = list(pairwise([obs_dim + action_dim, *cfg.hidden, 1]))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(n, a, b, device=device)) for a, b in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(n, 1, b, device=device)) for _, b in sizes)
        for (inputs, _), weight, bias in zip(sizes, self.weights, self.biases):
            bound = 1 / math.sqrt(inputs)
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            nn.init.uniform_(bias, -bound, bound, generator=generator)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], dim=-1).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
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


def with_noise(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The batch, and standard normal numbers for the policy's actions at s and at s': all that an update draws."""
    drawn = {name: normal_like(batch["action"], generator) for name in ("noise", "next_noise")}
    return batch | drawn


def critic_loss(
    critic: Critic,
    target: Critic,
    actor: Actor,
    alpha: Tensor,
    batch: dict[str, Tensor],
    cfg: Config,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over both heads is stable-baselines3's half of their sum."""
    with torch.no_grad():
        next_action, log_prob = actor.sample(batch["next_obs"], batch["next_noise"])
        next_q = target(batch["next_obs"], next_action)
        value = next_q.amin(dim=0) - alpha * log_prob
        backup = batch["reward"] + cfg.discount * (1 - batch["terminated"]) * value
    q = critic(batch["obs"], batch["action"])
    loss = (q - backup).square().mean()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`q` (2, B) and `log_prob` (B,) of the actor's own actions."""
    loss = (alpha * log_prob - q.amin(dim=0)).mean()
    return loss, {"losses/actor": loss.detach(), "policy/entropy": -log_prob.detach().mean()}


def alpha_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Its descent raises the temperature while the entropy is below its target."""
    loss = log_alpha * (entropy - target_entropy)
    return loss, {"losses/alpha": loss.detach()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(None, device, cfg.online_steps, dataset.obs_dim, dataset.action_dim)
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    alpha = Alpha(cfg.init_alpha, device)
    target = frozen_copy(critic)
    networks = {"actor": actor, "critic": critic, "alpha": alpha}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True) for name, net in networks.items()}
    fixed_alpha = None if cfg.alpha is None else torch.tensor(cfg.alpha, device=device)

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        obs = batch["obs"]
        temperature = alpha().detach() if fixed_alpha is None else fixed_alpha
        action, log_prob = actor.sample(obs, batch["noise"])
        # temperature: towards the target entropy; the other steps still use the one before
        metrics = {"policy/alpha": temperature}
        if fixed_alpha is None:
            entropy = -log_prob.detach().mean()
            loss, of_alpha = alpha_loss(alpha.log, entropy, cfg.target_entropy * dataset.action_dim)
            gradient_step(optimizers["alpha"], loss)
            metrics |= of_alpha
        # Q: towards r + discount * (the smaller target Q of the policy's next action + its entropy bonus)
        loss, of_critic = critic_loss(critic, target, actor, temperature, batch, cfg)
        gradient_step(optimizers["critic"], loss)
        # policy: towards actions of high Q and high entropy
        loss, of_actor = actor_loss(critic(obs, action), log_prob, temperature)
        gradient_step(optimizers["actor"], loss)
        polyak_update(target, critic, cfg.target_tau)
        return metrics | of_critic | of_actor

    update = compiled(update, optimizers.values(), cfg.compile)
    env = run.training_env()
    run.register(networks=networks, target=target, optimizers=optimizers, buffer=buffer)
    for _ in run.online(cfg.online_steps):
        learning = run.env_step >= cfg.start_steps
        action = actor.explore(env.obs, generator) if learning else env.random_action(generator)
        buffer.add(*env.step(action))
        if learning:
            for _ in range(cfg.updates_per_step):
                metrics = update(with_noise(buffer.sample(cfg.batch_size, generator), generator))
            run.log(metrics, updates=cfg.updates_per_step)
        if run.evaluation_due:
            run.evaluate(actor)


SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "target_tau": ("log", 2e-3, 5e-2),
    "target_entropy": ("uniform", -2.0, 0.0),
    "updates_per_step": ("int", 1, 4),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)

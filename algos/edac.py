"""EDAC: an ensemble of diverse critics (An, Moon, Kim, Song 2021, arXiv 2110.01548), and SAC-N.

SAC on the dataset with many critics, whose minimum is low where they disagree, which is where the data are not. SAC-N
needs hundreds of them. EDAC gets along with tens by making their gradients with respect to the action point in
different directions, so that some critic objects to every way out of the data.

Presets: `edac` (default) and `sac_n`, without the diversity term; both with CORL's constants. Equations, deviations,
settings by domain, results: docs/algorithms/edac.md.

Run: python algos/edac.py --dataset hoard/pendulum/mixed-v0 --seed 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import ReplayBuffer
from hoard.runners import Run, main
from hoard.runners.nn import (
    ObsNormalizer,
    compiled,
    frozen_copy,
    gradient,
    gradient_step,
    leaf,
    linear,
    normal_like,
    polyak_update,
)


@dataclass
class Config:
    """EDAC and SAC-N. Defaults follow CORL."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    data: str = "all"  # all of it, or top=F, weight=return, weight=advantage, hubl=rank:A; see docs/datasets.md
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 1_000_000  # gradient updates on the dataset
    log_every: int = 1000  # updates per row of training metrics
    eval_every: int = 5000  # updates between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # updates between checkpoints
    # --- optimisation ---
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size
    hidden: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of every network
    # --- data ---
    normalize_obs: bool = False  # standardise observations inside the networks
    # --- SAC ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    init_alpha: float = 1.0  # temperature at the start
    target_entropy: float = -1.0  # of the policy, in nats per action dimension
    # --- EDAC ---
    critics: int = 10  # size of the ensemble; the minimum over all of it is the target and what the actor climbs
    eta: float = 1.0  # weight of the diversity of the critics' gradients

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if self.eta < 0:
            raise ValueError(f"eta {self.eta}: must not be negative")
        if self.critics < (2 if self.eta else 1):
            raise ValueError(f"critics {self.critics}: at least 1, and 2 where eta is above 0")


PRESETS: dict[str, dict[str, Any]] = {
    "edac": {},
    "sac_n": {"eta": 0.0, "critics": 20},
}
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


# --- networks ---


class Actor(nn.Module):
    """A Gaussian squashed by tanh to [-1, 1], its standard deviation dependent on the state."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim, *cfg.hidden, 2 * action_dim]
        layers = [linear(a, b, generator, "torch") for a, b in pairwise(sizes)]
        for layer in layers[:-1]:
            nn.init.constant_(layer.bias, 0.1)
        for parameter in layers[-1].parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3, generator=generator)
        self.layers = nn.ModuleList(layers)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std before the tanh, each (..., action_dim)."""
        x = self.normalize(obs)
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        mean, log_std = self.layers[-1](x).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A reparameterised action for standard normal noise, both (..., action_dim), and its log-density, (...)."""
        mean, log_std = self(obs)
        return squash(mean, log_std, noise)

    def act(self, obs: Tensor) -> Tensor:
        """The image of the mean, tanh(mean)."""
        return torch.tanh(self(obs)[0])


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std * noise) and its log-density; log(1 - tanh(u)^2) in the form that does not overflow."""
    u = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), log_prob.sum(dim=-1)


class Critic(nn.Module):
    """N Q functions of (obs, action), returned as (N, B). Layer k of all is one weight (N, in, out).

    `action` is (B, action_dim), or (N, B, action_dim) with an action for each of them.
    """

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        n, device = cfg.critics, generator.device
        self.normalize = ObsNormalizer(obs_dim, device)
        sizes = list(pairwise([obs_dim + action_dim, *cfg.hidden, 1]))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(n, a, b, device=device)) for a, b in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.full((n, 1, b), 0.1, device=device)) for _, b in sizes)
        for (inputs, _), weight in zip(sizes, self.weights):
            bound = 1 / math.sqrt(inputs)
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        for parameter in (self.weights[-1], self.biases[-1]):
            nn.init.uniform_(parameter, -3e-3, 3e-3, generator=generator)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        n = len(self.weights[0])
        x = torch.cat([self.normalize(obs).expand(n, -1, -1), action.expand(n, -1, -1)], dim=-1)
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


def diversity_loss(critic: Critic, obs: Tensor, action: Tensor) -> Tensor:
    """Mean cosine between the gradients of two critics with respect to the action, times N.

    The paper's equation 8 (its number from memory). Summed over ordered pairs and divided by N - 1, as the authors'
    code does.
    """
    n = len(critic.weights[0])
    actions = leaf(action.expand(n, -1, -1))
    (slope,) = gradient(critic(obs, actions).sum(), [actions], create_graph=True)
    direction = (slope / (slope.norm(dim=2, keepdim=True) + 1e-10)).transpose(0, 1)
    cosines = direction @ direction.transpose(1, 2)
    others = 1 - torch.eye(n, device=action.device, dtype=action.dtype)
    return (cosines * others).sum(dim=(1, 2)).mean() / (n - 1)


def critic_loss(
    critic: Critic,
    target: Critic,
    actor: Actor,
    alpha: Tensor,
    batch: dict[str, Tensor],
    cfg: Config,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of all critics, summed over them, and eta times their gradients' likeness."""
    with torch.no_grad():
        next_action, log_prob = actor.sample(batch["next_obs"], batch["next_noise"])
        value = target(batch["next_obs"], next_action).amin(dim=0) - alpha * log_prob
        backup = batch["reward"] + cfg.discount * (1 - batch["terminated"]) * value
    q = critic(batch["obs"], batch["action"])
    loss = (q - backup).square().mean(dim=1).sum()
    metrics = {"values/q": q.detach().mean(), "values/q_std": q.detach().std(dim=0, unbiased=False).mean()}
    if cfg.eta:
        likeness = diversity_loss(critic, batch["obs"], batch["action"])
        loss = loss + cfg.eta * likeness
        metrics["losses/diversity"] = likeness.detach()
    return loss, metrics | {"losses/critic": loss.detach()}


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`q` (N, B) and `log_prob` (B,) of the actor's own actions."""
    loss = (alpha * log_prob - q.amin(dim=0)).mean()
    return loss, {"losses/actor": loss.detach(), "policy/entropy": -log_prob.detach().mean()}


def alpha_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Its descent raises the temperature while the entropy is below its target."""
    loss = log_alpha * (entropy - target_entropy)
    return loss, {"losses/alpha": loss.detach(), "policy/alpha": log_alpha.detach().exp()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(dataset, device, discount=cfg.discount)
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    alpha = Alpha(cfg.init_alpha, device)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        for net in (actor, critic):
            net.normalize.fit(mean, std + 1e-3)
    target = frozen_copy(critic)
    networks = {"actor": actor, "critic": critic, "alpha": alpha}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True) for name, net in networks.items()}

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        obs = batch["obs"]
        # temperature: towards the target entropy
        action, log_prob = actor.sample(obs, batch["noise"])
        loss, metrics = alpha_loss(alpha.log, -log_prob.detach().mean(), cfg.target_entropy * dataset.action_dim)
        gradient_step(optimizers["alpha"], loss)
        temperature = alpha().detach()
        # policy: towards actions that no critic finds bad, and high entropy
        loss, of_actor = actor_loss(critic(obs, action), log_prob, temperature)
        gradient_step(optimizers["actor"], loss)
        # Q: towards r + discount * the smallest target Q, in as many directions as there are critics
        loss, of_critic = critic_loss(critic, target, actor, temperature, batch, cfg)
        gradient_step(optimizers["critic"], loss)
        polyak_update(target, critic, cfg.target_tau)
        return metrics | of_actor | of_critic

    update = compiled(update, optimizers.values(), cfg.compile)
    run.register(networks=networks, target=target, optimizers=optimizers)
    for _ in run.loop(cfg.updates):
        run.log(update(with_noise(buffer.sample(cfg.batch_size, generator), generator)))
        if run.evaluation_due:
            run.evaluate(actor)


# On locomotion the paper has 10 and 50 critics, eta 1 and 5 (from memory).
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "critics": ("choice", [5, 10, 20, 50]),
    "eta": ("log", 0.1, 100.0),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)

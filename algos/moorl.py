"""MOORL: meta offline-online RL, SAC inside a Reptile loop, with RLPD and plain SAC as settings of the same file.

MOORL (Chaudhary, Mondal, Behera, TMLR 2025, arXiv 2506.09574) learns online with a dataset at hand. One burst: draw one
source, the dataset or the online replay; from the meta-weights take K SAC steps on mini-batches of that source alone;
move the meta-weights of actor and critic a fraction eta_meta towards where the K steps led (Reptile). In algorithmic
terms it is SAC on single-source bursts inside the Lookahead optimiser.

This is a re-implementation from the published pseudo-code; we could read neither the paper's text nor any code of it.
The pseudo-code fixes the random source, K steps on it from the meta-weights, the outer update of actor and critic, and
SAC's losses. Everything else is our choice, and every number below is ours, not the authors':

    what                                  default                                        option
    K, eta_meta                           5, 0.5                                         inner_steps, eta_meta
    policy that acts and is evaluated     the meta-actor                                 act_with
    mini-batches of a burst               K fresh ones                                   reuse_batch
    chance of the dataset                 0.5; certain until the replay holds a batch    p_offline
    Adam's moments across bursts          kept                                           reset_adam
    target critic                         Polyak after every step, to the fast weights   target_mode
    temperature                           a dual step with every actor step              temperature_mode
    critics                               2, minimum of both, no LayerNorm               critics, target_min, layer_norm
    environment steps per burst           1

Ablations that take the method apart: `sampling mixed` (every batch holds `offline_ratio` of the dataset, so that
Lookahead-SAC is left), `eta_meta 1` (bursts without meta-weights), `inner_steps`, or several at once.

`--preset rlpd` is RLPD (Ball, Smith, Kostrikov, Levine 2023, arXiv 2302.02948; the authors' released code): no meta
part, batches half and half, ten critics with LayerNorm, the target's minimum over two TARGET critics drawn anew at each
step, an actor that maximises the mean of all ten, 20 critic steps and one actor step per environment step. Its settings
by domain: locomotion as the preset; antmaze target_min 1, backup_entropy false, hidden 256 256 256, reward_shift -1;
adroit backup_entropy false, hidden 256 256 256, offline_terminals false. On CPU take critics 2, inner_steps 1.
`--preset sac` is SAC from scratch: the dataset is never drawn from.

Common to all: weights Xavier-uniform, biases 0, one temperature with the loss exp(log_alpha) * (entropy - target), a
tanh-Gaussian with log-std clipped to [-20, 2], actions mapped to [-1, 1] and clipped there to 1 - 1e-5 (all RLPD's).
Deviations from RLPD: halves are drawn exactly and shuffled nowhere, instead of interleaved; every critic step draws its
own 256 transitions.

An update, in the records of this file, is one burst: K steps. `updates` bursts on the dataset alone may come first.

Run: `python algos/moorl.py --dataset hoard/pendulum/mixed-v0 --online-steps 20000`. Shared with every algorithm:
hoard.datasets (data, replay), hoard.runners (environment, evaluation, records, checkpoints, resume).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main


@dataclass
class Config:
    """MOORL, RLPD or SAC: online with a dataset at hand. Defaults are ours (see the file's notes)."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 0  # bursts on the dataset before the first environment step
    online_steps: int = 250_000  # environment steps, one burst each; *_every count them
    log_every: int = 1000  # steps per row of training metrics
    eval_every: int = 5000  # steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # steps between checkpoints; they wait for the end of the episode
    # --- optimisation ---
    batch_size: int = 256  # transitions per step, drawn with replacement
    lr: float = 3e-4  # Adam's step size for actor, critics and temperature
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of every network
    # --- data ---
    start_steps: int = 5000  # uniform random actions before the first online burst
    sampling: Literal["burst", "mixed"] = "burst"  # one source per burst, or both in every batch
    p_offline: float = 0.5  # burst: chance of the dataset
    offline_ratio: float = 0.5  # mixed: the dataset's share of every batch
    reward_scale: float = 1.0  # rewards trained on are reward_scale * (r + reward_shift), in data and replay alike
    reward_shift: float = 0.0  # see reward_scale
    offline_terminals: bool = True  # false bootstraps through the dataset's terminations
    # --- SAC ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    critics: int = 2  # size of the ensemble
    target_min: int = 2  # target critics, drawn at each step, whose minimum is the target
    actor_q: Literal["min", "mean"] = "min"  # of all critics: what the actor maximises
    layer_norm: bool = False  # after each hidden layer of the critics, before the ReLU
    backup_entropy: bool = True  # whether the target contains the entropy of the next action
    init_temperature: float = 1.0  # alpha at the start
    target_entropy: float = -1.0  # per action dimension
    # --- meta ---
    inner_steps: int = 5  # K, critic steps per burst
    eta_meta: float = 0.5  # share of the way that the meta-weights follow; 1 is no meta-learning
    actor_steps: Literal["every", "last"] = "every"  # actor steps within a burst
    act_with: Literal["meta", "fast"] = "meta"  # actor that acts and is evaluated; fast: as the burst left it
    reuse_batch: bool = False  # K steps on one batch
    reset_adam: bool = False  # forget Adam's moments at the start of a burst
    target_mode: Literal["fast_every_step", "meta_once_per_burst"] = "fast_every_step"  # what the target follows
    temperature_mode: Literal["tuned", "meta", "fixed"] = "tuned"  # meta: tuned, and averaged as the networks are


PRESETS: dict[str, dict[str, Any]] = {
    "moorl": {},
    "rlpd": {
        "sampling": "mixed",
        "critics": 10,
        "actor_q": "mean",
        "layer_norm": True,
        "target_entropy": -0.5,
        "inner_steps": 20,
        "actor_steps": "last",
        "eta_meta": 1.0,
    },
    "sac": {"p_offline": 0.0, "inner_steps": 1, "eta_meta": 1.0},
}
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


# --- networks ---


class Actor(nn.Module):
    """A tanh-Gaussian over actions in [-1, 1] with state-dependent standard deviation."""

    center: Tensor
    half_range: Tensor

    def __init__(self, dataset: Dataset, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [dataset.obs_dim, *cfg.hidden, 2 * dataset.action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator) for a, b in pairwise(sizes))
        space, device = dataset.action_space, generator.device
        low, high = (torch.as_tensor(bound, device=device) for bound in (space.low, space.high))
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std before the tanh, each (B, action_dim)."""
        x = obs
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        mean, log_std = self.layers[-1](x).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A reparameterised action in [-1, 1], (B, action_dim), and its log-density, (B,)."""
        mean, log_std = self(obs)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return squash(mean, log_std, noise)

    def act(self, obs: Tensor, history: History | None = None) -> Tensor:
        """The mode's image, tanh(mean), in environment units."""
        return self.center + self.half_range * torch.tanh(self(obs)[0])

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sampled action in environment units."""
        return self.center + self.half_range * self.sample(obs, generator)[0]


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std * noise) and its log-density; log(1 - tanh(u)^2) in the form that does not overflow."""
    u = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), log_prob.sum(dim=-1)


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=generator.device)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Ensemble(nn.Module):
    """E independent Q functions of (obs, action), computed together, returned as (E, B).

    Layer k of all members is one weight (E, in, out); LayerNorm's scale and shift are each member's own.
    """

    def __init__(self, dataset: Dataset, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        n, device = cfg.critics, generator.device
        sizes = list(pairwise([dataset.obs_dim + dataset.action_dim, *cfg.hidden, 1]))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(n, a, b, device=device)) for a, b in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n, 1, b, device=device)) for _, b in sizes)
        for weight in self.weights:
            for member in weight:
                nn.init.xavier_uniform_(member, generator=generator)
        widths = cfg.hidden if cfg.layer_norm else ()
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
                x = torch.relu(x)
        return x.squeeze(-1)


class Temperature(nn.Module):
    def __init__(self, start: float, device: torch.device) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start), device=device))

    def forward(self) -> Tensor:
        return self.log.exp()


# --- losses: a scalar and detached metrics ---


def critic_loss(
    critic: Ensemble,
    target: Ensemble,
    actor: Actor,
    alpha: Tensor,
    batch: dict[str, Tensor],
    cfg: Config,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        next_action, log_prob = actor.sample(batch["next_obs"], generator)
        next_q = target(batch["next_obs"], next_action)
        if cfg.target_min < cfg.critics:
            next_q = next_q[torch.randperm(cfg.critics, generator=generator, device=next_q.device)[: cfg.target_min]]
        value = next_q.amin(dim=0)
        if cfg.backup_entropy:
            value = value - alpha * log_prob
        backup = batch["reward"] + cfg.discount * (1 - batch["terminated"]) * value
    q = critic(batch["obs"], batch["action"])
    loss = (q - backup).square().mean()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(
    actor: Actor, critic: Ensemble, alpha: Tensor, obs: Tensor, cfg: Config, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    action, log_prob = actor.sample(obs, generator)
    q = critic(obs, action)
    q = q.amin(dim=0) if cfg.actor_q == "min" else q.mean(dim=0)
    loss = (alpha * log_prob - q).mean()
    return loss, {"losses/actor": loss.detach(), "policy/entropy": -log_prob.detach().mean()}


def temperature_loss(alpha: Tensor, entropy: Tensor, target_entropy: float) -> tuple[Tensor, dict[str, Tensor]]:
    loss = alpha * (entropy - target_entropy)
    return loss, {"policy/temperature": alpha.detach()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    check(cfg)
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(dataset, device, online_capacity=cfg.online_steps)
    actor, critic = Actor(dataset, cfg, generator), Ensemble(dataset, cfg, generator)
    temperature = Temperature(cfg.init_temperature, device)
    target, meta_critic = frozen_copy(critic), frozen_copy(critic)
    meta_actor, meta_temperature = frozen_copy(actor), frozen_copy(temperature)
    adam = {
        name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True)
        for name, net in (("actor", actor), ("critic", critic), ("temperature", temperature))
    }
    slow_and_fast: list[tuple[nn.Module, nn.Module]] = [(meta_actor, actor), (meta_critic, critic)]
    if cfg.temperature_mode == "meta":
        slow_and_fast.append((meta_temperature, temperature))
    acting = meta_actor if cfg.act_with == "meta" else actor

    def normalised(action: Tensor) -> Tensor:
        """Actions as the networks see them."""
        return ((action - actor.center) / actor.half_range).clamp(-1 + 1e-5, 1 - 1e-5)

    buffer.action = normalised(buffer.action)
    buffer.reward = cfg.reward_scale * (buffer.reward + cfg.reward_shift)
    if not cfg.offline_terminals:
        buffer.terminated.zero_()  # holds the dataset's only: nothing is online yet

    def descend(name: str, loss: Tensor) -> None:
        adam[name].zero_grad(set_to_none=True)
        loss.backward()
        adam[name].step()

    def sac_step(batch: dict[str, Tensor], with_actor: bool) -> dict[str, Tensor]:
        loss, metrics = critic_loss(critic, target, actor, temperature().detach(), batch, cfg, generator)
        descend("critic", loss)
        if cfg.target_mode == "fast_every_step":
            follow(target, critic, cfg.target_tau)
        if with_actor:
            critic.requires_grad_(False)  # the actor's loss needs no gradient of the critics' weights
            loss, of_actor = actor_loss(actor, critic, temperature().detach(), batch["obs"], cfg, generator)
            descend("actor", loss)
            critic.requires_grad_(True)
            goal = cfg.target_entropy * dataset.action_dim
            loss, of_temperature = temperature_loss(temperature(), of_actor["policy/entropy"], goal)
            if cfg.temperature_mode != "fixed":
                descend("temperature", loss)
            metrics |= of_actor | of_temperature
        return metrics

    def burst(offline_ratio: float) -> dict[str, Tensor]:
        """K steps from the meta-weights on batches with this share of the dataset, then the outer update."""
        for slow, fast in slow_and_fast:
            follow(fast, slow, 1.0)
        if cfg.reset_adam:
            for optimizer in adam.values():
                optimizer.state.clear()
        for k in range(cfg.inner_steps):
            last = k == cfg.inner_steps - 1
            if k == 0 or not cfg.reuse_batch:
                batch = buffer.sample(cfg.batch_size, generator, offline_ratio)
            metrics = sac_step(batch, with_actor=last or cfg.actor_steps == "every")
        for slow, fast in slow_and_fast:
            follow(slow, fast, cfg.eta_meta)
        if cfg.target_mode == "meta_once_per_burst":
            follow(target, meta_critic, cfg.target_tau)
        source = {1.0: "offline", 0.0: "online"}.get(offline_ratio, "mixed")
        return metrics | {f"values/q_{source}": metrics["values/q"]}

    # Drawn ahead of training: asking the device for one draw at each step would wait for it.
    from_dataset = (torch.rand(cfg.online_steps, generator=generator, device=device) < cfg.p_offline).tolist()

    def ratio() -> float:
        if cfg.sampling == "mixed":
            return cfg.offline_ratio
        too_few = buffer.online_size < cfg.batch_size and cfg.p_offline > 0
        return float(too_few or from_dataset[run.env_step - 1])

    networks = {"actor": actor, "critic": critic, "target": target, "temperature": temperature}
    meta = {"meta_actor": meta_actor, "meta_critic": meta_critic, "meta_temperature": meta_temperature}
    env = run.training_env() if cfg.online_steps else None
    run.register(**networks, **meta, **{f"{name}_adam": a for name, a in adam.items()}, buffer=buffer)
    for _ in run.loop(cfg.updates):
        run.log(burst(1.0))
        if run.evaluation_due:
            run.evaluate(acting.act)
    if env is None:
        return

    for _ in run.online(cfg.online_steps):
        if run.env_step < cfg.start_steps:
            uniform = 2 * torch.rand(dataset.action_dim, generator=generator, device=device) - 1
            action = actor.center + actor.half_range * uniform
        else:
            action = acting.explore(torch.as_tensor(env.obs, device=device)[None], generator)[0]
        obs, done, reward, next_obs, terminated, truncated = env.step(action.cpu().numpy())
        reward = cfg.reward_scale * (reward + cfg.reward_shift)
        buffer.add(obs, normalised(torch.as_tensor(done, device=device)), reward, next_obs, terminated, truncated)
        if run.env_step > cfg.start_steps:
            run.update += 1
            run.log(burst(ratio()))
        if run.evaluation_due:
            run.evaluate(acting.act)


def frozen_copy(net: Any) -> Any:
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def follow(mover: nn.Module, leader: nn.Module, step: float) -> None:
    """Move each parameter of `mover` the share `step` of the way to `leader`'s; 1 copies it exactly."""
    for mine, theirs in zip(mover.parameters(), leader.parameters()):
        mine.lerp_(theirs, step)


def check(cfg: Config) -> None:
    """Raise ValueError for options that contradict one another or make no sense, naming what would be right."""
    for name in ("p_offline", "offline_ratio", "eta_meta", "target_tau"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise ValueError(f"{name} {getattr(cfg, name)} must lie in [0, 1]")
    if not 1 <= cfg.target_min <= cfg.critics:
        raise ValueError(f"target_min {cfg.target_min} must lie between 1 and critics = {cfg.critics}")
    if cfg.inner_steps < 1 or cfg.eta_meta == 0:
        raise ValueError(f"inner_steps {cfg.inner_steps} must be at least 1 and eta_meta {cfg.eta_meta} positive")
    if cfg.init_temperature <= 0:
        raise ValueError(f"init_temperature {cfg.init_temperature} must be positive")


if __name__ == "__main__":
    main(Config, train, PRESETS)

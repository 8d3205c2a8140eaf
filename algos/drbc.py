"""DRBC: demonstration-regularised RL, from a behaviour clone (Tiapkin et al., ICLR 2024, arXiv 2310.17303).

Clone a few demonstrations by regularised maximum likelihood; then do RL on the true reward under a penalty
kl_weight * KL(pi(.|s) || clone(.|s)) at every step. Demonstrations are used without their rewards, through the clone
alone. What the penalty may cost is kl_weight * KL(expert || clone) over an episode, and cloning makes that KL fall like
1 / (number of demonstrations): the more of them, the stronger the penalty may be, the less there is to explore.

The paper is theory, for finite and linear MDPs (`hoard.envs.tabular` has the exact solvers its statements are checked
with); it has no experiments and no code, and we could read its abstract and reviews only. This file is our own carrying
over to continuous actions, every constant ours: soft actor-critic with its entropy replaced by the KL,

    target   r + discount * (min_j Qbar_j(s', a') - w (log pi(a'|s') - log ref(a'|s'))),  a' ~ pi
    actor    minimises  w (log pi(a|s) - log ref(a|s)) - min_j Q_j(s, a),  a ~ pi reparameterised

There is no further entropy term: the reverse KL contains it. The actor starts as the clone. `w` (`kl_rule`): fixed, as
in the theory; annealed, the default, since a fixed weight leaves a bias; or tuned to a budget of nats per step.

The reference must not vanish where the actor goes, or the reverse KL explodes: a clone is nearly deterministic on the
demonstrations and arbitrary beside them. Two remedies, both on: its standard deviation has a floor
(`ref_log_std_min`), and it is mixed with the uniform distribution, ref = (1 - k) clone + k / 2^dim on [-1, 1]^dim with
k = 1 / (demonstrations + 1) clipped to [1e-3, 0.1]: the continuous counterpart of the mixture that the paper uses for
linear MDPs (from memory). With it log ref never falls below log k - dim log 2. A third trap is the tanh: demonstrations
at the bounds of the actions, clipped as usual to 1 - 1e-3 or closer, put the clone where the tanh is flat; Q's gradient
then reaches the actor weakened 500 times while the KL, which lives before the tanh, does not, and the actor cannot
leave. `action_clip 0.05` keeps the slope at 0.1.

Settings that take the method apart: `online_steps 0` is the clone alone. `kl_weight 0` is plain actor-critic from the
clone; nothing then keeps its policy stochastic, and what explores is what remains of the clone's noise. `ref_mixture 1`
makes the reference uniform: soft actor-critic at a fixed temperature, demonstrations unused but for the start
(`actor_init random`: not at all; preset `uniform`). `kl_in_target false` penalises the actor only (BRAC's policy
penalty). `demo_ratio` also replays demonstrations, rewards included, which the theory does not.

Rewards are divided by the range of the dataset's rewards (`reward_scale`), so that one `kl_weight` serves several
environments. The headline policy is the squashed mean; the objective's own, sampled, policy is evaluated at the end as
the variant `sampled`.

Run: `python algos/drbc.py --dataset hoard/pendulum/mixed-v0 --online-steps 20000`. Shared with every algorithm:
hoard.datasets (data, replay), hoard.runners (environment, evaluation, records, checkpoints, resume).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main


@dataclass
class Config:
    """Behaviour cloning of demonstrations, then KL-regularised RL towards the clone. All defaults are ours."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 10_000  # updates of the clone
    online_steps: int = 100_000  # environment steps of RL, one update each; *_every count them; 0: the clone alone
    log_every: int = 1000  # updates or steps per row of training metrics
    eval_every: int = 5000  # updates or steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # between checkpoints; online they wait for the end of the episode
    # --- optimisation ---
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size for clone, actor and critics
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of every network
    # --- demonstrations and clone ---
    demonstrations: int = 20  # episodes cloned, drawn from the pool; 0, or more than it has, takes all of it
    expert_fraction: float = 0.1  # the pool: this share of the dataset's episodes, the best by undiscounted return
    holdout: float = 0.1  # share of the demonstrations held out, whole episodes; the clone that fits them best is kept
    action_clip: float = 0.05  # actions cloned are clipped to +-(1 - this) of their range; see the notes
    ref_log_std_min: float = -2.0  # floor of the reference's log-std; -5, as while fitting, is none
    ref_mixture: float | None = None  # k: share of the uniform distribution in the reference; None is the rule above
    # --- KL-regularised RL ---
    kl_weight: float = 0.3  # w, in units of the scaled reward; where it starts if it is annealed or tuned
    kl_rule: Literal["anneal", "fixed", "budget"] = "anneal"  # how it goes on
    anneal_to: float = 0.1  # anneal: falls linearly to this share of w ...
    anneal_by: float = 0.5  # ... at this share of the online steps, and stays
    kl_budget: float = 3.0  # budget: nats per step and action dimension that w is tuned to
    kl_in_target: bool = True  # false: the KL is in the actor's loss only
    kl_estimate: Literal["sample", "analytic"] = "sample"  # analytic needs ref_mixture 0
    actor_init: Literal["clone", "random"] = "clone"  # where RL starts
    warmup_steps: int = 1000  # environment steps in which that actor acts unchanged and only the critics learn
    demo_ratio: float = 0.0  # share of demonstrations in every RL batch
    reward_scale: float | None = None  # factor of the rewards; None is 1 / (largest - smallest reward of the dataset)
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    layer_norm: bool = True  # in the critics


PRESETS: dict[str, dict[str, Any]] = {
    "drbc": {},
    "fixed": {"kl_rule": "fixed"},
    "uniform": {"ref_mixture": 1.0, "actor_init": "random", "kl_rule": "fixed", "updates": 0},
}
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


# --- networks ---


class Actor(nn.Module):
    """A tanh-Gaussian over actions in [-1, 1] with state-dependent standard deviation: clone, reference and learner."""

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

    def forward(self, obs: Tensor, log_std_min: float = LOG_STD_MIN) -> tuple[Tensor, Tensor]:
        """Mean and log-std before the tanh, each (B, action_dim)."""
        x = obs
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        mean, log_std = self.layers[-1](x).chunk(2, dim=-1)
        return mean, log_std.clamp(log_std_min, LOG_STD_MAX)

    def act(self, obs: Tensor, history: History | None = None) -> Tensor:
        """tanh(mean), in environment units."""
        return self.center + self.half_range * torch.tanh(self(obs)[0])

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sampled action in environment units."""
        mean, log_std = self(obs)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return self.center + self.half_range * torch.tanh(mean + log_std.exp() * noise)


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=generator.device)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Critic(nn.Module):
    """Two Q functions of (obs, action), returned as (2, B)."""

    def __init__(self, dataset: Dataset, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [dataset.obs_dim + dataset.action_dim, *cfg.hidden, 1]
        self.heads = nn.ModuleList()
        for _ in range(2):
            layers: list[nn.Module] = []
            for inputs, outputs in pairwise(sizes):
                layers.append(linear(inputs, outputs, generator))
                if cfg.layer_norm:
                    layers.append(nn.LayerNorm(outputs, device=generator.device))
                layers.append(nn.ReLU())
            self.heads.append(nn.Sequential(*layers[: -2 if cfg.layer_norm else -1]))  # the last layer is linear

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], dim=-1)
        return torch.stack([head(x).squeeze(-1) for head in self.heads])


class Multiplier(nn.Module):
    """kl_weight as a learnt number, for `kl_rule budget`."""

    def __init__(self, start: float, device: torch.device) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start), device=device))


# --- densities; u is an action before the tanh ---


def squashed_log_prob(mean: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """log-density of tanh(u), (B,), when u ~ N(mean, std); log(1 - tanh(u)^2) in the form that does not overflow."""
    log_prob = -0.5 * ((u - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
    return (log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))).sum(dim=-1)


def reference_log_prob(mean: Tensor, log_std: Tensor, u: Tensor, mixture: float) -> Tensor:
    """log((1 - k) clone(tanh u) + k 2^-dim), (B,), with k = `mixture`; never below log k - dim log 2."""
    uniform = torch.full(u.shape[:-1], -u.shape[-1] * math.log(2), device=u.device, dtype=u.dtype)
    if mixture == 1:
        return uniform
    log_prob = squashed_log_prob(mean, log_std, u)
    if mixture == 0:
        return log_prob
    return torch.logaddexp(math.log1p(-mixture) + log_prob, math.log(mixture) + uniform)


def gaussian_kl(mean: Tensor, log_std: Tensor, ref_mean: Tensor, ref_log_std: Tensor) -> Tensor:
    """KL of two diagonal Gaussians, (B,); equally that of their images under one invertible map, as tanh is."""
    ratio = 2 * (log_std - ref_log_std)
    distance = ((mean - ref_mean) / ref_log_std.exp()).square()
    return 0.5 * (ratio.exp() + distance - 1 - ratio).sum(dim=-1)


def sample_with_kl(
    actor: Actor, reference: Actor, mixture: float, obs: Tensor, cfg: Config, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A reparameterised action in [-1, 1], (B, dim), and the KL to the reference or its estimate from it, (B,)."""
    mean, log_std = actor(obs)
    with torch.no_grad():
        ref_mean, ref_log_std = reference(obs, cfg.ref_log_std_min)
    u = mean + log_std.exp() * torch.randn(mean.shape, generator=generator, device=mean.device)
    if cfg.kl_estimate == "analytic":
        return torch.tanh(u), gaussian_kl(mean, log_std, ref_mean, ref_log_std)
    kl = squashed_log_prob(mean, log_std, u) - reference_log_prob(ref_mean, ref_log_std, u, mixture)
    return torch.tanh(u), kl


# --- losses: a scalar and detached metrics ---


def clone_loss(clone: Actor, obs: Tensor, action: Tensor, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of actions in [-1, 1], clipped to +-(1 - clip)."""
    mean, log_std = clone(obs)
    loss = -squashed_log_prob(mean, log_std, torch.atanh(action.clamp(-1 + clip, 1 - clip))).mean()
    return loss, {"clone/nll": loss.detach(), "clone/std": log_std.detach().exp().mean()}


def soft_backup(reward: Tensor, terminated: Tensor, next_q: Tensor, next_kl: Tensor, weight: Tensor, discount: float):
    """r + discount (1 - terminated) (min_j Q_j - weight * KL), for next_q (2, B)."""
    return reward + discount * (1 - terminated) * (next_q.amin(dim=0) - weight * next_kl)


def critic_loss(critic: Critic, obs: Tensor, action: Tensor, backup: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    q = critic(obs, action)
    loss = (q - backup).square().mean(dim=1).sum()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(q: Tensor, kl: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`q` (2, B) and `kl` (B,) of the actor's own actions."""
    loss = (weight * kl - q.amin(dim=0)).mean()
    return loss, {"losses/actor": loss.detach(), "policy/kl": kl.detach().mean()}


def multiplier_loss(log_weight: Tensor, kl: Tensor, budget: float) -> Tensor:
    """Its descent raises the weight while the KL exceeds the budget."""
    return -log_weight * (kl - budget)


# --- training ---


def train(cfg: Config, run: Run) -> None:
    check(cfg)
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(dataset, device, online_capacity=cfg.online_steps)
    scale = reward_scale(dataset, cfg.reward_scale)
    buffer.reward *= scale
    clone, critic = Actor(dataset, cfg, generator), Critic(dataset, cfg, generator)
    actor = Actor(dataset, cfg, generator)
    target = copy.deepcopy(critic).requires_grad_(False)
    multiplier = Multiplier(max(cfg.kl_weight, 1e-8), device)
    adam = {
        name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True)
        for name, net in (("clone", clone), ("actor", actor), ("critic", critic), ("multiplier", multiplier))
    }

    def normalised(action: Tensor) -> Tensor:
        """Actions as the networks see them."""
        return (action - actor.center) / actor.half_range

    buffer.action = normalised(buffer.action)
    chosen = choose_demonstrations(dataset, cfg)
    fitted, held_out = (torch.as_tensor(np.flatnonzero(np.isin(dataset.episode_index, c))).to(device) for c in chosen)
    # With demonstrations held out the reference is the best clone so far, else the clone itself.
    reference = copy.deepcopy(clone) if len(held_out) else clone
    least = nn.Parameter(torch.tensor(math.inf, device=device), requires_grad=False)
    best = nn.ParameterList([least])
    mixture = mixture_share(cfg, demonstrations=len(chosen[0]) + len(chosen[1]))

    def descend(name: str, loss: Tensor) -> None:
        adam[name].zero_grad(set_to_none=True)
        loss.backward()
        adam[name].step()

    def demonstrations(count: int) -> dict[str, Tensor]:
        return buffer.gather(fitted[torch.randint(len(fitted), (count,), generator=generator, device=device)])

    def update_clone(look: bool) -> dict[str, Tensor]:
        batch = demonstrations(cfg.batch_size)
        loss, metrics = clone_loss(clone, batch["obs"], batch["action"], cfg.action_clip)
        descend("clone", loss)
        if look and len(held_out):
            with torch.no_grad():
                batch = buffer.gather(held_out)
                nll = clone_loss(clone, batch["obs"], batch["action"], cfg.action_clip)[0]
                better = nll < least
                for kept, now in zip([least, *reference.parameters()], [nll, *clone.parameters()]):
                    kept.copy_(torch.where(better, now, kept))  # a choice that waits for no device
            metrics |= {"clone/nll_held_out": nll}
        return metrics

    def update(batch: dict[str, Tensor], with_actor: bool) -> dict[str, Tensor]:
        if cfg.kl_rule == "budget":
            weight = multiplier.log.detach().exp()
        else:
            weight = torch.full((), scheduled_weight(cfg, run.env_step), device=device)
        with torch.no_grad():
            next_action, next_kl = sample_with_kl(actor, reference, mixture, batch["next_obs"], cfg, generator)
            next_q = target(batch["next_obs"], next_action)
            in_target = weight if cfg.kl_in_target else torch.zeros_like(weight)
            backup = soft_backup(batch["reward"], batch["terminated"], next_q, next_kl, in_target, cfg.discount)
        loss, metrics = critic_loss(critic, batch["obs"], batch["action"], backup)
        descend("critic", loss)
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters()):
                slow.lerp_(fast, cfg.target_tau)
        if with_actor:
            critic.requires_grad_(False)  # the actor's loss needs no gradient of the critics' weights
            action, kl = sample_with_kl(actor, reference, mixture, batch["obs"], cfg, generator)
            loss, of_actor = actor_loss(critic(batch["obs"], action), kl, weight)
            descend("actor", loss)
            critic.requires_grad_(True)
            metrics |= of_actor | {"policy/kl_weight": weight}
            if cfg.kl_rule == "budget":
                budget = cfg.kl_budget * dataset.action_dim
                descend("multiplier", multiplier_loss(multiplier.log, of_actor["policy/kl"], budget))
        return metrics

    env = run.training_env() if cfg.online_steps else None
    networks = {"clone": clone, "reference": reference, "actor": actor, "critic": critic, "target": target}
    optimizers = {f"{name}_adam": a for name, a in adam.items()}
    run.register(**networks, **optimizers, multiplier=multiplier, best=best, buffer=buffer)
    if not run.update and not run.env_step:
        run.say(f"demonstrations: {len(chosen[0])} episodes to fit, {len(chosen[1])} held out")
    for number in run.loop(cfg.updates):
        run.log(update_clone(look=number % 100 == 0 or number == cfg.updates or run.evaluation_due))
        if run.evaluation_due:
            run.evaluate(reference.act)
    if env is None:
        run.evaluate(sampled(reference, run), variant="sampled")
        return

    if run.env_step == 0 and cfg.actor_init == "clone":
        actor.load_state_dict(reference.state_dict())
    from_demos = round(cfg.demo_ratio * cfg.batch_size)
    for _ in run.online(cfg.online_steps):
        action = actor.explore(torch.as_tensor(env.obs, device=device)[None], generator)[0]
        obs, done, reward, next_obs, terminated, truncated = env.step(action.cpu().numpy())
        action = normalised(torch.as_tensor(done, device=device))
        buffer.add(obs, action, scale * reward, next_obs, terminated, truncated)
        if buffer.online_size >= cfg.batch_size:
            batch = buffer.sample(cfg.batch_size - from_demos, generator, 0.0) if from_demos < cfg.batch_size else {}
            if from_demos:
                extra = demonstrations(from_demos)
                batch = {name: torch.cat([extra[name], batch[name]]) if batch else extra[name] for name in extra}
            run.update += 1
            run.log(update(batch, with_actor=run.env_step > cfg.warmup_steps))
        if run.evaluation_due:
            run.evaluate(actor.act)
            if run.env_step >= cfg.online_steps:
                run.evaluate(sampled(actor, run), variant="sampled")


def choose_demonstrations(dataset: Dataset, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to fit and episodes held out (none if their share is less than one), drawn with the run's seed.

    They are drawn from the best episodes, not simply the very best: those are often the ones with an easy start.
    """
    pool = np.argsort(-dataset.returns, kind="stable")[: max(1, int(cfg.expert_fraction * dataset.num_episodes))]
    drawn = np.random.default_rng(cfg.seed).permutation(pool)[: cfg.demonstrations or None]
    held = int(cfg.holdout * len(drawn))
    return np.sort(drawn[held:]), np.sort(drawn[:held])


def mixture_share(cfg: Config, demonstrations: int) -> float:
    """k, the share of the uniform distribution in the reference."""
    if cfg.ref_mixture is not None:
        return cfg.ref_mixture
    return min(max(1 / (demonstrations + 1), 1e-3), 0.1)


def scheduled_weight(cfg: Config, env_step: int) -> float:
    """w of rules `fixed` and `anneal` at an environment step."""
    if cfg.kl_rule == "fixed":
        return cfg.kl_weight
    progress = min(env_step / (cfg.anneal_by * cfg.online_steps), 1.0)
    return cfg.kl_weight * (1 + progress * (cfg.anneal_to - 1))


def reward_scale(dataset: Dataset, scale: float | None) -> float:
    """The factor of the rewards. Raises ValueError if it is left to the range of the rewards and that is 0."""
    if scale is not None:
        return scale
    span = float(dataset.reward.max() - dataset.reward.min())
    if span == 0:
        raise ValueError(f"every reward of {dataset.id} is the same: give reward_scale")
    return 1 / span


def sampled(policy: Actor, run: Run):
    """Actions drawn from the policy for an evaluation, from a generator of its own."""
    generator = torch.Generator(run.device).manual_seed(run.env_step)

    def act(obs: Tensor, history: History) -> Tensor:
        return policy.explore(obs, generator)

    return act


def check(cfg: Config) -> None:
    """Raise ValueError for options that contradict one another or make no sense, naming what would be right."""
    for name in ("holdout", "demo_ratio", "anneal_to", "target_tau"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise ValueError(f"{name} {getattr(cfg, name)} must lie in [0, 1]")
    for name in ("anneal_by", "expert_fraction"):
        if not 0 < getattr(cfg, name) <= 1:
            raise ValueError(f"{name} {getattr(cfg, name)} must lie in (0, 1]")
    if cfg.holdout == 1 or not 0 < cfg.action_clip < 1:
        raise ValueError("holdout must be below 1 and action_clip in (0, 1)")
    if cfg.ref_mixture is not None and not 0 <= cfg.ref_mixture <= 1:
        raise ValueError(f"ref_mixture {cfg.ref_mixture} must lie in [0, 1]")
    if cfg.kl_estimate == "analytic" and cfg.ref_mixture != 0:
        raise ValueError("kl_estimate analytic holds for a reference without a uniform part: give ref_mixture 0")
    if cfg.updates == 0 and (cfg.ref_mixture != 1 or cfg.actor_init == "clone"):
        raise ValueError("updates 0 leaves the clone untrained: only with ref_mixture 1 and actor_init random")
    if cfg.kl_weight < 0 or (cfg.kl_rule == "budget" and cfg.kl_weight == 0):
        raise ValueError(f"kl_weight {cfg.kl_weight} must not be negative, and positive with kl_rule budget")


if __name__ == "__main__":
    main(Config, train, PRESETS)

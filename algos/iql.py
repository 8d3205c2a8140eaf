"""IQL: implicit Q-learning (Kostrikov, Nair, Levine 2021, arXiv 2110.06169).

Offline value learning that never evaluates an action outside the data. V(s) is an upper expectile of the target Q over
dataset actions, Q is regressed on r + discount * V(s'), and the policy is cloned from dataset actions with weights
exp(beta * advantage). One batch feeds all three losses.

The defaults are the authors' released code (preset `paper`); `--preset corl` is CORL's version. Where they differ:

    what                        paper                            corl
    order of one update         V, actor, Q, target              V, Q, target, actor
    V in Q's target and weight  after the V step                 before the V step
    Q loss                      sum over the two heads           mean over the two heads
    initialisation              orthogonal sqrt(2), zero bias    torch's default
    log-std range               [-5, 2]                          [-20, 2]
    observations                raw                              standardised, std + 1e-3
    dataset actions             clipped to +-(1 - 1e-5)          as they are
    actor learning rate         cosine to 0                      cosine to 0
    reward                      * 1000 / range of returns        raw

Online fine-tuning (`online_steps`): after the offline updates the same update goes on, once per environment step, on
one buffer that holds the dataset and grows; actions are sampled from the actor's Gaussian and clipped; rewards are
transformed as the data's. As in the authors' code, draws are uniform over everything stored (`offline_ratio` fixes the
dataset's share instead) and the actor's learning rate is constant online; theirs does not decay offline either when
fine-tuning follows (`actor_lr_schedule constant`). CORL keeps stepping a cosine whose period is the offline phase, so
that its rate climbs back online; that is not repeated here.

Settings the authors change by domain: antmaze expectile 0.9, beta 10, reward_mode minus_one; kitchen and adroit
beta 0.5, actor_dropout 0.1, reward_mode none. CORL's per-dataset changes: adroit expectile 0.8, actor_dropout 0.1;
antmaze as above; hopper-medium and -medium-replay actor deterministic, target_tau 0.001, reward_mode return_range;
hopper-medium-expert expectile 0.5, beta 6.

Deviations from both: returns for the reward range are cut at terminated or truncated flags, not by jumps between
observations; the last transition of a time-limited episode is kept where its next observation exists (D4RL files, read
as everyone reads them, lack it); networks see actions mapped to [-1, 1], so that environments with other bounds work;
the deterministic actor regresses with the same weights.

Run: `python algos/iql.py --dataset hoard/maze2d/umaze-v0 --seed 0`. Shared with every algorithm: hoard.datasets (data,
replay), hoard.runners (evaluation, records, checkpoints, resume).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main


@dataclass
class Config:
    """IQL, offline and fine-tuned online. Defaults follow the authors' released code."""

    # --- experiment ---
    dataset: str = "hoard/maze2d/umaze-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 1_000_000  # gradient updates on the dataset
    online_steps: int = 0  # environment steps of online fine-tuning, one update each; *_every count them then
    log_every: int = 1000  # updates per row of training metrics
    eval_every: int = 5000  # updates between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # updates between checkpoints
    # --- optimisation ---
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size for V, Q and actor
    actor_lr_schedule: Literal["cosine", "constant"] = "cosine"  # cosine falls to 0 at the last offline update
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of every network
    init: Literal["orthogonal", "torch"] = "orthogonal"  # weight initialisation
    # --- data ---
    reward_mode: Literal["return_range", "minus_one", "none"] = "return_range"  # transform of the rewards trained on
    clip_actions: bool = True  # clip dataset actions to +-(1 - 1e-5) of their range
    normalize_obs: bool = False  # standardise observations inside the networks
    offline_ratio: float | None = None  # share of the dataset in online batches; None draws from everything alike
    # --- IQL ---
    discount: float = 0.99  # gamma
    expectile: float = 0.7  # tau of the value loss; 0.5 is the mean, 1 the maximum over the data
    beta: float = 3.0  # inverse temperature of the policy weights
    max_weight: float = 100.0  # cap of exp(beta * advantage)
    target_tau: float = 0.005  # Polyak step of the target critic
    update_order: Literal["paper", "corl"] = "paper"  # see the table above
    q_loss: Literal["sum", "mean"] = "sum"  # over the two heads
    actor: Literal["gaussian", "deterministic"] = "gaussian"  # log-likelihood or squared error on dataset actions
    actor_dropout: float = 0.0  # dropout after each hidden layer of the actor while training
    log_std_min: float = -5.0  # lower bound of the actor's log standard deviation; the upper one is 2


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "corl": {
        "update_order": "corl",
        "q_loss": "mean",
        "init": "torch",
        "log_std_min": -20.0,
        "normalize_obs": True,
        "clip_actions": False,
        "reward_mode": "none",
    },
}


# --- networks ---


class MLP(nn.Module):
    """ReLU network; standardises its input with fixed shift and scale, and draws dropout from the run's generator."""

    shift: Tensor
    scale: Tensor

    def __init__(self, sizes: list[int], shift: Tensor, scale: Tensor, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(a, b, cfg.init, generator) for a, b in pairwise(sizes))
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        x = (x - self.shift) / self.scale
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
            if dropout:
                x = x * (torch.rand(x.shape, generator=generator, device=x.device) >= dropout) / (1 - dropout)
        return self.layers[-1](x)


def linear(inputs: int, outputs: int, init: str, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=generator.device)
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain=math.sqrt(2), generator=generator)
        nn.init.zeros_(layer.bias)
    else:  # torch's own default, from the run's generator
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


class Critic(nn.Module):
    """Two Q functions of (obs, action), returned as (2, B)."""

    def __init__(self, sizes: list[int], shift: Tensor, scale: Tensor, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = nn.ModuleList(MLP(sizes, shift, scale, cfg, generator) for _ in range(2))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], dim=-1)
        return torch.stack([head(x).squeeze(-1) for head in self.heads])


class Actor(nn.Module):
    """Mean bounded by tanh to [-1, 1], a plain (not squashed) Gaussian around it, std independent of the state."""

    center: Tensor
    half_range: Tensor

    def __init__(self, net: MLP, dataset: Dataset, cfg: Config, device: torch.device) -> None:
        super().__init__()
        self.net, self.dropout, self.log_std_min = net, cfg.actor_dropout, cfg.log_std_min
        self.log_std = nn.Parameter(torch.zeros(dataset.action_dim, device=device))
        low, high = (torch.as_tensor(b, device=device) for b in (dataset.action_space.low, dataset.action_space.high))
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, obs: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Mean (B, action_dim) and log-std (action_dim,) of the normalised action."""
        mean = torch.tanh(self.net(obs, self.dropout if generator is not None else 0.0, generator))
        return mean, self.log_std.clamp(self.log_std_min, 2.0)

    def act(self, obs: Tensor, history: History | None = None) -> Tensor:
        """The mean action, in environment units."""
        return self.center + self.half_range * self(obs)[0]

    @torch.no_grad()
    def sample(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """An action drawn from the Gaussian, in environment units; the environment clips it."""
        mean, log_std = self(obs)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return self.center + self.half_range * (mean + log_std.exp() * noise)


# --- losses: a scalar and detached metrics ---


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(error < 0)| * error^2 (the authors' critic.py)."""
    return (torch.where(error > 0, expectile, 1 - expectile) * error.square()).mean()


def value_loss(value: nn.Module, obs: Tensor, target_q: Tensor, expectile: float) -> tuple[Tensor, dict[str, Tensor]]:
    v = value(obs).squeeze(-1)
    loss = expectile_loss(target_q - v, expectile)
    return loss, {"losses/value": loss.detach(), "values/v": v.detach().mean()}


def critic_loss(
    critic: nn.Module, obs: Tensor, action: Tensor, backup: Tensor, reduction: str
) -> tuple[Tensor, dict[str, Tensor]]:
    q = critic(obs, action)
    per_head = (q - backup).square().mean(dim=1)
    loss = per_head.sum() if reduction == "sum" else per_head.mean()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(
    actor: Actor, obs: Tensor, action: Tensor, advantage: Tensor, cfg: Config, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    weight = torch.exp(cfg.beta * advantage).clamp(max=cfg.max_weight)
    mean, log_std = actor(obs, generator)
    error = action - mean
    if cfg.actor == "gaussian":
        log_prob = -(0.5 * (error / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)
        loss = -(weight * log_prob).mean()
    else:
        loss = (weight * error.square().sum(dim=-1)).mean()
    metrics = {
        "losses/actor": loss.detach(),
        "policy/weight": weight.mean(),
        "policy/weight_capped": (weight >= cfg.max_weight).float().mean(),
        "policy/std": log_std.detach().exp().mean(),
    }
    return loss, metrics


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(dataset, device, online_capacity=cfg.online_steps)
    buffer.reward = transform_reward(buffer.reward, dataset, cfg.reward_mode)

    shift, scale = torch.zeros(dataset.obs_dim, device=device), torch.ones(dataset.obs_dim, device=device)
    if cfg.normalize_obs:
        table = buffer.observations[buffer.rows]
        shift, scale = table.mean(dim=0), table.std(dim=0, unbiased=False) + 1e-3
    pad = dataset.action_dim
    q_shift, q_scale = torch.cat([shift, shift.new_zeros(pad)]), torch.cat([scale, scale.new_ones(pad)])
    o, a, h = dataset.obs_dim, dataset.action_dim, list(cfg.hidden)
    actor = Actor(MLP([o, *h, a], shift, scale, cfg, generator), dataset, cfg, device)
    value = MLP([o, *h, 1], shift, scale, cfg, generator)
    critic = Critic([o + a, *h, 1], q_shift, q_scale, cfg, generator)
    target = Critic([o + a, *h, 1], q_shift, q_scale, cfg, generator).requires_grad_(False)
    target.load_state_dict(critic.state_dict())
    optimizers = {
        name: torch.optim.Adam(net.parameters(), lr=cfg.lr)
        for name, net in (("actor", actor), ("value", value), ("critic", critic))
    }

    def normalised(action: Tensor) -> Tensor:
        """Actions as the networks see them."""
        action = (action - actor.center) / actor.half_range
        return action.clamp(-1 + 1e-5, 1 - 1e-5) if cfg.clip_actions else action

    buffer.action = normalised(buffer.action)

    def step(name: str, loss: Tensor) -> None:
        optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        optimizers[name].step()

    def update_value(obs: Tensor, target_q: Tensor) -> dict[str, Tensor]:
        loss, metrics = value_loss(value, obs, target_q, cfg.expectile)
        step("value", loss)
        return metrics

    def update_actor(obs: Tensor, action: Tensor, advantage: Tensor) -> dict[str, Tensor]:
        loss, metrics = actor_loss(actor, obs, action, advantage, cfg, generator)
        step("actor", loss)
        return metrics

    def update_critic(obs: Tensor, action: Tensor, backup: Tensor) -> dict[str, Tensor]:
        loss, metrics = critic_loss(critic, obs, action, backup, cfg.q_loss)
        step("critic", loss)
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters()):
                slow.lerp_(fast, cfg.target_tau)
        return metrics

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        obs, action, next_obs = batch["obs"], batch["action"], batch["next_obs"]
        discount = cfg.discount * (1 - batch["terminated"])
        with torch.no_grad():
            target_q = target(obs, action).amin(dim=0)
        if cfg.update_order == "corl":
            with torch.no_grad():
                backup = batch["reward"] + discount * value(next_obs).squeeze(-1)
                advantage = target_q - value(obs).squeeze(-1)
            metrics = update_value(obs, target_q)
            metrics |= update_critic(obs, action, backup)
            return metrics | update_actor(obs, action, advantage)
        metrics = update_value(obs, target_q)
        with torch.no_grad():
            backup = batch["reward"] + discount * value(next_obs).squeeze(-1)
            advantage = target_q - value(obs).squeeze(-1)
        metrics |= update_actor(obs, action, advantage)
        return metrics | update_critic(obs, action, backup)

    networks = {"actor": actor, "value": value, "critic": critic, "target": target}
    online = {"buffer": buffer} if cfg.online_steps else {}
    env = run.training_env() if cfg.online_steps else None
    run.register(**networks, **{f"{k}_adam": v for k, v in optimizers.items()}, **online)
    for number in run.loop(cfg.updates):
        if cfg.actor_lr_schedule == "cosine":
            fraction = (number - 1) / cfg.updates
            optimizers["actor"].param_groups[0]["lr"] = 0.5 * cfg.lr * (1 + math.cos(math.pi * fraction))
        run.log(update(buffer.sample(cfg.batch_size, generator)))
        if run.evaluation_due:
            run.evaluate(actor.act)
    if env is None:
        return

    optimizers["actor"].param_groups[0]["lr"] = cfg.lr
    for _ in run.online(cfg.online_steps):
        action = actor.sample(torch.as_tensor(env.obs, device=device)[None], generator)[0]
        obs, done, reward, next_obs, terminated, truncated = env.step(action.cpu().numpy())
        reward = float(transform_reward(torch.tensor(reward), dataset, cfg.reward_mode))
        buffer.add(obs, normalised(torch.as_tensor(done, device=device)), reward, next_obs, terminated, truncated)
        run.log(update(buffer.sample(cfg.batch_size, generator, cfg.offline_ratio)))
        run.update += 1
        if run.evaluation_due:
            run.evaluate(actor.act)


def transform_reward(reward: Tensor, dataset: Dataset, mode: str) -> Tensor:
    """Rewards as trained on. Raises ValueError if the mode divides by the range of returns and that is 0."""
    if mode == "minus_one":
        return reward - 1
    if mode == "return_range":
        span = float(dataset.returns.max() - dataset.returns.min())
        if span == 0:
            raise ValueError(f"reward_mode return_range: every episode of {dataset.id} has the same return; use none")
        return reward * (1000 / span)
    return reward


if __name__ == "__main__":
    main(Config, train, PRESETS)

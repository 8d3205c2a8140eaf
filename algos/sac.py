"""SAC from scratch: the online baseline of the hybrid protocol, by stable-baselines3.

Networks, losses and updates are stable-baselines3's (Haarnoja et al. 2018; `SAC.train` does every gradient step here);
this file gives it the house's training environment, replay buffer, evaluation and records, so that its results land in
the same files as those of the methods that are given data. It never sees a transition of the dataset, which only names
the environment and the reference scores.

Defaults are stable-baselines3's, except for the random first steps (100 there; 5000 as the hybrid methods have it).
Truncated episodes bootstrap, terminated ones do not.

stable-baselines3 draws its initial weights and its actions from the global stream of torch. A run seeds it and keeps
it in its checkpoints; batches are drawn by the run's own generator. So this file resumes to the bit like every other.

Run: `python algos/sac.py --dataset hoard/pendulum/mixed-v0 --online-steps 20000`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from hoard.datasets import ReplayBuffer
from hoard.envs import make_env
from hoard.runners import History, Run, main


@dataclass
class Config:
    """SAC from scratch in the environment of a dataset."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # names the environment and the reference scores; its data are not used
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 0  # offline updates: there are none, anything else is refused
    online_steps: int = 100_000  # environment steps
    log_every: int = 1000  # environment steps per row of training metrics
    eval_every: int = 5000  # environment steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # environment steps between checkpoints, which wait for the end of an episode
    # --- optimisation ---
    batch_size: int = 256  # transitions per update
    lr: float = 3e-4  # Adam's step size for actor, critics and temperature
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of actor and critics
    # --- SAC ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critics
    updates_per_step: int = 1  # gradient updates per environment step
    start_steps: int = 5000  # uniformly random actions at first, without updates
    target_entropy: float | None = None  # of the policy, in nats; None is -action_dim
    alpha: float | None = None  # fixed temperature; None tunes it to the target entropy
    init_alpha: float = 1.0  # where the tuning starts


PRESETS: dict[str, dict[str, Any]] = {}


class Batches:
    """Our replay buffer in the shape that stable-baselines3 samples from."""

    def __init__(self, buffer: ReplayBuffer, generator: torch.Generator) -> None:
        self.buffer, self.generator = buffer, generator

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        batch = self.buffer.sample(batch_size, self.generator)
        return ReplayBufferSamples(
            observations=batch["obs"],
            actions=batch["action"],
            next_observations=batch["next_obs"],
            dones=batch["terminated"][:, None],
            rewards=batch["reward"][:, None],
        )


class Temperature:
    """The entropy coefficient, which is no part of stable-baselines3's policy, in the form of a registered object."""

    def __init__(self, sac: SAC) -> None:
        self.sac = sac

    def state_dict(self) -> dict[str, Any]:
        if self.sac.ent_coef_optimizer is None or self.sac.log_ent_coef is None:
            return {}
        return {"log_alpha": self.sac.log_ent_coef.detach().clone(), "adam": self.sac.ent_coef_optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.sac.ent_coef_optimizer is None or self.sac.log_ent_coef is None:
            return
        with torch.no_grad():
            self.sac.log_ent_coef.copy_(state["log_alpha"])
        self.sac.ent_coef_optimizer.load_state_dict(state["adam"])


def train(cfg: Config, run: Run) -> None:
    if cfg.updates:
        raise ValueError(f"updates {cfg.updates}: SAC from scratch has no offline stage; its budget is online_steps")
    if cfg.init_alpha <= 0:
        raise ValueError(f"init_alpha {cfg.init_alpha} must be positive")
    env, device = run.training_env(), run.device
    spec = run.dataset.env_spec
    assert spec is not None  # training_env has refused a dataset without one
    sac = SAC(
        "MlpPolicy",
        make_env(spec),
        learning_rate=cfg.lr,
        buffer_size=1,  # its own buffer is replaced below
        batch_size=cfg.batch_size,
        tau=cfg.target_tau,
        gamma=cfg.discount,
        ent_coef=f"auto_{cfg.init_alpha}" if cfg.alpha is None else cfg.alpha,
        target_entropy="auto" if cfg.target_entropy is None else cfg.target_entropy,
        policy_kwargs={"net_arch": list(cfg.hidden)},
        device=device,
    )
    sac.set_logger(Logger(folder=None, output_formats=[]))
    buffer = ReplayBuffer(None, device, cfg.online_steps, run.dataset.obs_dim, run.dataset.action_dim)
    sac.replay_buffer = Batches(buffer, run.generator)  # type: ignore[assignment]
    policy = sac.policy
    low, high = env.action_space.low, env.action_space.high
    center, half_range = (torch.as_tensor(x, device=device) for x in ((high + low) / 2, (high - low) / 2))

    def act(obs: Tensor, history: History | None = None, deterministic: bool = True) -> Tensor:
        """Actions in environment units."""
        action = policy.actor(obs, deterministic=deterministic)
        return center + half_range * action

    run.register(
        policy=policy,
        actor_adam=policy.actor.optimizer,
        critic_adam=policy.critic.optimizer,
        temperature=Temperature(sac),
        buffer=buffer,
    )
    for _ in run.online(cfg.online_steps):
        if run.env_step < cfg.start_steps:
            unit = torch.rand(len(low), generator=run.generator, device=device).cpu().numpy()
            action = low + (high - low) * unit
        else:
            with torch.no_grad():
                action = act(torch.as_tensor(env.obs, device=device)[None], deterministic=False)[0].cpu().numpy()
        obs, done, reward, next_obs, terminated, truncated = env.step(action)
        scaled = np.asarray(2 * (done - low) / (high - low) - 1, np.float32)
        buffer.add(obs, scaled, reward, next_obs, terminated, truncated)
        if run.env_step > cfg.start_steps:
            sac.train(cfg.updates_per_step, cfg.batch_size)
            policy.set_training_mode(False)
            run.update += cfg.updates_per_step
            values = sac.logger.name_to_value
            names = {"actor_loss": "losses/actor", "critic_loss": "losses/critic", "ent_coef": "policy/alpha"}
            run.log({ours: torch.tensor(values[f"train/{theirs}"]) for theirs, ours in names.items()})
        if run.evaluation_due:
            run.evaluate(act)


if __name__ == "__main__":
    main(Config, train, PRESETS)

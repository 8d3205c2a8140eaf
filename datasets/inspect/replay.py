"""Recorded MuJoCo steps, replayed in other versions of their environment.

The simulator is put into a recorded state, the recorded action is applied, and the next observation and the reward are
compared with the recorded ones. `hoard.envs.mujoco_versions.WORLDS` says in which versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from hoard.envs.mujoco_recording import ROBOTS, Steps
from hoard.envs.mujoco_versions import make

CLIP = 10.0
EXACT = 1e-6
_SAME = 1e-5  # a recorded state that gives the recorded observation but for float32


@dataclass(frozen=True)
class Errors:
    """What one world made of the chosen steps; all arrays are over the `rows` (n,) that could be replayed.

    `obs` is the largest absolute difference over positions and velocities (NaN: next observation not recorded),
    `reward` is replayed minus recorded, `fell` the recorded end, `falls` the replayed one, `contact_cost` what the
    replayed reward contains of it. `from_infos` counts rows whose state was recorded; the others' was taken from the
    observation. `left_out` counts rows by the reason.
    """

    world: str
    rows: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    fell: np.ndarray
    falls: np.ndarray
    contact_cost: np.ndarray
    from_infos: int
    left_out: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """Plain numbers: median, 95 % quantile and maximum of both errors, the share within `EXACT`, the failing steps.

        The reward's error is that of the steps that did not fail; `failing` has those that did, with the median of the
        signed difference: v5 pays no healthy reward there, v4 does.
        """
        fell = self.fell
        return {
            "world": self.world,
            "steps": len(self.rows),
            "from_infos": self.from_infos,
            "left_out": self.left_out,
            "next_unknown": int(np.isnan(self.obs).sum()),
            "obs": _quantiles(self.obs[~np.isnan(self.obs)]),
            "reward": _quantiles(np.abs(self.reward[~fell])),
            "failing": {
                "steps": int(fell.sum()),
                "reward_difference": float(np.median(self.reward[fell])) if fell.any() else None,
                "end_differs": int((self.falls != fell).sum()),
            },
            "contact_cost": _quantiles(self.contact_cost),
        }


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    median, high = np.quantile(values, (0.5, 0.95))
    exact = float(np.mean(values <= EXACT))
    return {"median": float(median), "p95": float(high), "max": float(values.max()), "exact": exact}


def replay(steps: Steps, world: str, rows: np.ndarray | None = None) -> Errors:
    """Replay the steps `rows` (default: all) in a world, each from its own recorded state.

    The solver starts cold, as after a reset: its warm start is not recorded, and moves a converged step by 1e-13.
    """
    robot = ROBOTS[steps.robot]
    rows = np.arange(len(steps)) if rows is None else np.asarray(rows)
    env = make(steps.robot, world, _contact_forces(steps))
    out: list[tuple] = []
    left_out: dict[str, int] = {}
    from_infos = 0
    for row in rows.tolist():
        state, source = _state(steps, row, env.model)
        if state is None:
            left_out[source] = left_out.get(source, 0) + 1
            continue
        from_infos += source == "infos"
        before = None
        if robot.lags and not steps.first[row]:
            before, _ = _state(steps, row - 1, env.model)
        _put(env, state, before, steps.action[row - 1])
        obs, reward, falls, _, info = env.step(steps.action[row])  # in its own precision: the control cost is
        seen = env.model.nq - robot.hidden + env.model.nv  # behind them Ant may have contact forces
        error = np.abs(obs[:seen] - steps.next_observation[row, :seen]).max()
        # v4 reports the contact cost under the name of the control cost, and has one only if it has the forces.
        cost = env.contact_cost if "reward_contact" in info or getattr(env, "_use_contact_forces", False) else 0.0
        out.append((row, error, reward - steps.reward[row], falls, cost))
    env.close()
    done, error, difference, falls, cost = (np.array(column) for column in zip(*out)) if out else [np.empty(0)] * 5
    done = done.astype(np.int64)
    fell = steps.terminated[done].astype(bool)
    return Errors(world, done, error, difference, fell, falls.astype(bool), cost, from_infos, left_out)


def _contact_forces(steps: Steps) -> bool:
    """Whether an Ant's observation holds contact forces. D4RL's has their 84 columns, full of zeros for all we know."""
    return steps.observation.shape[1] == 111 and bool(steps.observation[:, 27:].any())


def _state(steps: Steps, row: int, model: Any) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """(qpos, qvel) before a step and where it is from, or None and the reason. Positions not known are NaN.

    A recorded state counts only if it gives the recorded observation: the states in some of D4RL's files do not
    (its issues 84 and 100).
    """
    robot = ROBOTS[steps.robot]
    obs = steps.observation[row].astype(np.float64)
    seen = model.nq - robot.hidden
    position, velocity = obs[:seen], obs[seen : seen + model.nv]
    if steps.qpos is not None and steps.qvel is not None:
        qpos, qvel = steps.qpos[row].astype(np.float64), steps.qvel[row].astype(np.float64)
        shown = np.concatenate([qpos[robot.hidden :], np.clip(qvel, -CLIP, CLIP) if robot.clipped else qvel])
        if np.allclose(shown, obs[: len(shown)], rtol=_SAME, atol=_SAME):
            return (qpos, qvel), "infos"
    if robot.clipped and (np.abs(velocity) >= CLIP - 1e-6).any():
        return None, "velocity clipped"
    return (np.concatenate([np.full(robot.hidden, np.nan), position]), velocity), "observation"


def _put(env: Any, state: tuple[np.ndarray, np.ndarray], before: tuple | None, action: np.ndarray) -> None:
    """Put the simulator into a state, by way of the step before if that is given."""
    mujoco.mj_resetData(env.model, env.data)
    qpos, qvel = state
    if before is None:
        env.set_state(np.nan_to_num(qpos), qvel)
        env.data.qacc_warmstart[:] = 0
        return
    env.set_state(np.nan_to_num(before[0]), before[1])
    env.data.qacc_warmstart[:] = 0
    env.step(action)
    unknown = np.isnan(qpos) | np.isnan(before[0])  # nothing depends on where the robot is
    env.data.qpos[:] = np.where(unknown, env.data.qpos, qpos)
    env.data.qvel[:] = qvel

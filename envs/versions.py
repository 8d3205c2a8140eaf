"""How far recorded MuJoCo steps lie from what Hopper, HalfCheetah, Walker2d and Ant make of them in other versions.

The simulator is put into a recorded state, the recorded action is applied, and the next observation and the reward are
compared with the recorded ones. `WORLDS` says in what they are replayed: Gymnasium's v4 and v5 as installed, and v4
with what later releases of MuJoCo changed taken back:

- Since MuJoCo 3.5.0 two geoms touch within the sum of their margins, before within the larger one (mujoco_warp's pull
  request 1141, "Replace margin/gap max with sum"). Of these robots Hopper and Ant have margins.
- Since 2.1.1 mass and inertia of a capsule are exact; before they were those of a cylinder as long as its straight part
  and one radius (MuJoCo's changelog). All limbs are capsules. D4RL's v2 data came from mujoco-py, so from before.

What of this was measured, and what not: envs/README.md.

This file needs gymnasium, mujoco and numpy alone, so that it can also record steps in an environment of older packages:

    python envs/versions.py Hopper-v4 hopper.hdf5 --steps 10000 --seed 0

writes random steps in D4RL's layout (with h5py), to be read as ``d4rl:hopper.hdf5+as=hopper-random-v2+full``.
"""

from __future__ import annotations

import argparse
import re
import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np


@dataclass(frozen=True)
class Robot:
    """`hidden` leading positions are not observed, observed velocities may be `clipped` to +-10.

    `lags`: the reward is computed from positions of bodies, which MuJoCo leaves one substep behind the joints, so the
    step before must be replayed as well. `total_mass` is what the model file scales its bodies to (None: it does not).
    """

    hidden: int
    obs_dims: tuple[int, ...]
    clipped: bool = False
    lags: bool = False
    total_mass: float | None = None


ROBOTS = {
    "Hopper": Robot(1, (11,), clipped=True),
    "HalfCheetah": Robot(1, (17,), total_mass=14.0),
    "Walker2d": Robot(1, (17,), clipped=True),
    "Ant": Robot(2, (27, 105, 111), lags=True),
}
ENV_IDS = tuple(f"{robot}-{version}" for robot in ROBOTS for version in ("v4", "v5"))
WORLDS = {
    "v4": "Gymnasium's v4 on the MuJoCo installed here",
    "v5": "Gymnasium's v5 on the MuJoCo installed here",
    "v4-margins": "v4 with contact margins as before MuJoCo 3.5.0",
    "v4-capsules": "v4-margins with capsule masses and inertias as before MuJoCo 2.1.1: the nearest to D4RL's v2",
}
CLIP = 10.0
EXACT = 1e-6
_SAME = 1e-5  # a recorded state that gives the recorded observation but for float32


def robot_of(env_id: str) -> str:
    """Hopper, HalfCheetah, Walker2d or Ant of an environment's id. Raises ValueError, with the ids, for any other."""
    match = re.fullmatch(r"(?:hoard/D4RL-)?(\w+)-v\d+", env_id)
    if match is None or match[1] not in ROBOTS:
        raise ValueError(f"{env_id} cannot be replayed in other versions, only steps of {', '.join(ROBOTS)} can")
    return match[1]


@dataclass(frozen=True)
class Steps:
    """N recorded steps in their order: `observation`, `next_observation` (N, obs), `action` (N, act), `reward` (N,).

    `first` (N,) marks the first step of each episode, `terminated` (N,) true ends. A next observation that was not
    recorded is NaN. `qpos` (N, nq) and `qvel` (N, nv) are the simulator's state before the step, NaN in rows where it
    was not recorded, None where it never was.
    """

    robot: str
    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    first: np.ndarray
    qpos: np.ndarray | None = None
    qvel: np.ndarray | None = None

    def __post_init__(self) -> None:
        dims = ROBOTS[self.robot].obs_dims
        if self.observation.shape[1] not in dims:
            wanted, found = " or ".join(map(str, dims)), self.observation.shape[1]
            raise ValueError(f"{self.robot} is observed by {wanted} numbers, these steps have {found}")

    def __len__(self) -> int:
        return len(self.reward)


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


# --- replay ---


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


def make(robot: str, world: str, contact_forces: bool = False) -> Any:
    """The bare environment of a robot in one of `WORLDS`; `contact_forces` (Ant's v4): observe them, and pay for them.

    Raises ValueError for a world that there is not.
    """
    if world not in WORLDS:
        raise ValueError(f"world {world!r}: must be one of {', '.join(WORLDS)}")
    version = world.partition("-")[0]
    kwargs = {"use_contact_forces": True} if contact_forces and version == "v4" else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        env: Any = gym.make(f"{robot}-{version}", disable_env_checker=True, **kwargs).unwrapped
    if world in ("v4-margins", "v4-capsules"):
        larger_margin_counts(env.model)
    if world == "v4-capsules":
        capsules_as_cylinders(env.model, ROBOTS[robot].total_mass)
    env.reset(seed=0)
    return env


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


# --- what MuJoCo changed ---


def larger_margin_counts(model: Any) -> None:
    """Let two geoms touch within the larger of their margins, as MuJoCo did before 3.5.0, where it sums them now.

    Raises ValueError for a model whose geoms differ in margin: halving them all would not do there.
    """
    if tuple(int(part) for part in re.findall(r"\d+", mujoco.__version__)[:2]) < (3, 5):
        return
    if np.ptp(model.geom_margin):
        raise ValueError(f"geoms with different margins {np.unique(model.geom_margin)}: not one of these robots")
    model.geom_margin[:] *= 0.5


def capsules_as_cylinders(model: Any, total_mass: float | None = None) -> None:
    """Give capsules the mass and inertia they had before MuJoCo 2.1.1, then scale all bodies to `total_mass`.

    Densities are those of the model as compiled; its bodies consist of capsules and spheres.
    """
    weigh(model, as_cylinder=True)
    if total_mass is not None:
        mujoco.mj_setTotalmass(model, total_mass)
    mujoco.mj_setConst(model, mujoco.MjData(model))


def weigh(model: Any, as_cylinder: bool) -> None:
    """Recompute mass, centre and inertia of each body from its geoms and its present density.

    Without `as_cylinder` nothing changes but the last digits, which shows that the formulas are MuJoCo's.
    Raises ValueError for geoms other than capsules and spheres.
    """
    for body in range(1, model.nbody):
        geoms = range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body])
        if not geoms or model.body_mass[body] == 0:
            continue
        density = model.body_mass[body] / sum(_solid(model, geom, 1.0, False)[0] for geom in geoms)
        solids = [_solid(model, geom, density, as_cylinder) for geom in geoms]
        mass = sum(m for m, _ in solids)
        centre = sum(m * model.geom_pos[geom] for geom, (m, _) in zip(geoms, solids)) / mass
        inertia = np.zeros((3, 3))
        for geom, (m, diagonal) in zip(geoms, solids):
            turn, off = _matrix(model.geom_quat[geom]), model.geom_pos[geom] - centre
            inertia += turn @ np.diag(diagonal) @ turn.T + m * (off @ off * np.eye(3) - np.outer(off, off))
        if len(geoms) > 1:  # one geom keeps its centre and axes, which MuJoCo may have noted as those of the body
            _, axes = np.linalg.eigh(inertia)
            axes[:, 0] *= np.sign(np.linalg.det(axes))
            mujoco.mju_mat2Quat(model.body_iquat[body], axes.reshape(-1))
            model.body_ipos[body] = centre
        axes = _matrix(model.body_iquat[body])
        model.body_mass[body] = mass
        model.body_inertia[body] = np.diag(axes.T @ inertia @ axes)


def _solid(model: Any, geom: int, density: float, as_cylinder: bool) -> tuple[float, np.ndarray]:
    """Mass and principal moments of a geom about its own axes."""
    kind, (radius, half, _) = mujoco.mjtGeom(model.geom_type[geom]), model.geom_size[geom]
    if kind not in (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE):
        raise ValueError(f"geom {geom} is neither a sphere nor a capsule: not one of these robots")
    ball = density * 4 / 3 * np.pi * radius**3
    around_ball = 0.4 * ball * radius**2
    if kind == mujoco.mjtGeom.mjGEOM_SPHERE:
        return ball, np.full(3, around_ball)
    length = 2 * half + (radius if as_cylinder else 0.0)
    rod = density * np.pi * radius**2 * length
    along, across = rod * radius**2 / 2, rod * (3 * radius**2 + length**2) / 12
    if as_cylinder:
        return rod, np.array([across, across, along])
    across += around_ball + ball * (length**2 / 4 + 3 * length * radius / 8)
    return rod + ball, np.array([across, across, along + around_ball])


def _matrix(quat: np.ndarray) -> np.ndarray:
    out = np.empty(9)
    mujoco.mju_quat2Mat(out, quat)
    return out.reshape(3, 3)


# --- recording ---


def record(env_id: str, steps: int, seed: int = 0) -> Steps:
    """`steps` steps of uniform random actions in one of `ENV_IDS`, in float64, with the states of the simulator.

    Episode k is reset with seed + k; the last episode may be unfinished.
    """
    if env_id not in ENV_IDS:
        raise ValueError(f"environment {env_id!r}: must be one of {', '.join(ENV_IDS)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        env: Any = gym.make(env_id, disable_env_checker=True)
    bare = env.unwrapped
    env.action_space.seed(seed)
    rows: list[tuple] = []
    episode, done = 0, True
    obs = None
    while len(rows) < steps:
        first = done
        if first:
            obs, _ = env.reset(seed=seed + episode)
            episode += 1
        qpos, qvel, action = bare.data.qpos.copy(), bare.data.qvel.copy(), env.action_space.sample()
        then, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, then, reward, terminated, first, qpos, qvel))
        obs, done = then, terminated or truncated
    env.close()
    columns = [np.array(column) for column in zip(*rows)]
    return Steps(robot_of(env_id), *columns)


def write(steps: Steps, file: str, single: bool = False) -> None:
    """Write steps to a new HDF5 file in D4RL's layout, with the versions they were recorded in.

    `single`: in float32, as D4RL's own files are. Raises FileExistsError.
    """
    import h5py

    last = np.append(steps.first[1:], True)
    last[-1] = False  # where the recording stopped
    with h5py.File(file, "x") as h5:
        h5.attrs["recorded_with"] = f"gymnasium {gym.__version__}, mujoco {mujoco.__version__}"
        for name, array in (
            ("observations", steps.observation),
            ("actions", steps.action),
            ("next_observations", steps.next_observation),
            ("rewards", steps.reward),
            ("terminals", steps.terminated),
            ("timeouts", last & ~steps.terminated),
            ("infos/qpos", steps.qpos),
            ("infos/qvel", steps.qvel),
        ):
            assert array is not None
            h5[name] = array.astype(np.float32) if single and array.dtype == np.float64 else array


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Record random steps of a MuJoCo robot, in D4RL's layout.")
    parser.add_argument("env_id", choices=ENV_IDS)
    parser.add_argument("file", help="a new .hdf5 file")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="store numbers as D4RL's files do (default: float64)")
    args = parser.parse_args(argv)
    write(record(args.env_id, args.steps, args.seed), args.file, args.float32)


if __name__ == "__main__":
    main()

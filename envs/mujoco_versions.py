"""Hopper, HalfCheetah, Walker2d and Ant as other versions of Gymnasium and MuJoCo have them.

`WORLDS` lists them: Gymnasium's v4 and v5 as installed, and v4 with changes of later MuJoCo releases undone:

- Since MuJoCo 3.5.0 two geoms touch within the sum of their margins, before within the larger one (mujoco_warp's pull
  request 1141, "Replace margin/gap max with sum"). Of these robots Hopper and Ant have margins.
- Since 2.1.1 mass and inertia of a capsule are exact; before they were those of a cylinder as long as its straight part
  and one radius (MuJoCo's changelog). All limbs are capsules. D4RL's v2 data came from mujoco-py, so from before.

What of this was measured, and what not: envs/README.md.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from hoard.envs.mujoco_recording import ROBOTS

WORLDS = {
    "v4": "Gymnasium's v4 on the MuJoCo installed here",
    "v5": "Gymnasium's v5 on the MuJoCo installed here",
    "v4-margins": "v4 with contact margins as before MuJoCo 3.5.0",
    "v4-capsules": "v4-margins with capsule masses and inertias as before MuJoCo 2.1.1: the nearest to D4RL's v2",
}


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

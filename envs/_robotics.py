"""Import Gymnasium-Robotics without its notice, register its environments, and keep them running under MuJoCo 4.

On import it prints to stderr that the Adroit rewards changed, whatever is going to be used. The notice is set aside
here and shown by `make_env` to those whom it concerns.

Its functions that read and set a joint ask whether a NumPy integer is ``in`` a tuple of MuJoCo's joint types, which is
never so since MuJoCo 4.0: FrankaKitchen ends in a bare AssertionError. They are replaced by MuJoCo's own access by
name.
"""

from typing import Any

import gymnasium as gym
import numpy as np

try:
    from farama_notifications import notifications
except ImportError:  # an optional dependency of Gymnasium-Robotics
    notifications = {}

_notices = notifications.pop("gymnasium_robotics", {})
import gymnasium_robotics  # noqa: E402
from gymnasium_robotics.utils import mujoco_utils  # noqa: E402

notifications["gymnasium_robotics"] = _notices
gym.register_envs(gymnasium_robotics)

ADROIT_NOTICE = _notices.get(gymnasium_robotics.__version__)


def _get_joint_qpos(model: Any, data: Any, name: str) -> np.ndarray:
    return data.joint(name).qpos.copy()


def _get_joint_qvel(model: Any, data: Any, name: str) -> np.ndarray:
    return data.joint(name).qvel.copy()


def _set_joint_qpos(model: Any, data: Any, name: str, value: Any) -> None:
    data.joint(name).qpos[:] = value


def _set_joint_qvel(model: Any, data: Any, name: str, value: Any) -> None:
    data.joint(name).qvel[:] = value


mujoco_utils.get_joint_qpos, mujoco_utils.get_joint_qvel = _get_joint_qpos, _get_joint_qvel
mujoco_utils.set_joint_qpos, mujoco_utils.set_joint_qvel = _set_joint_qpos, _set_joint_qvel

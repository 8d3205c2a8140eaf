"""MuJoCo's warnings through Python's logging (``hoard.mujoco``), unless somebody has set a handler already.

By itself MuJoCo prints them and writes MUJOCO_LOG.TXT into the working directory. What it says of model files being out
of date concerns Gymnasium, not whoever makes an environment: that goes to the level DEBUG.
"""

import logging

import mujoco

_LOG = logging.getLogger("hoard.mujoco")


def _tell(text: str) -> None:
    _LOG.log(logging.DEBUG if "deprecated" in text else logging.WARNING, "MuJoCo: %s", text.strip())


if mujoco.get_mju_user_warning() is None:
    mujoco.set_mju_user_warning(_tell)

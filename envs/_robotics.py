"""Import Gymnasium-Robotics without its notice, and register its environments.

On import it prints to stderr that the Adroit rewards changed, whatever is going to be used. The notice is set aside
here and shown by `make_env` to those whom it concerns.
"""

import gymnasium as gym

try:
    from farama_notifications import notifications
except ImportError:  # an optional dependency of Gymnasium-Robotics
    notifications = {}

_notices = notifications.pop("gymnasium_robotics", {})
import gymnasium_robotics  # noqa: E402

notifications["gymnasium_robotics"] = _notices
gym.register_envs(gymnasium_robotics)

ADROIT_NOTICE = _notices.get(gymnasium_robotics.__version__)

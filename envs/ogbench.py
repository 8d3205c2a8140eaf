"""OGBench's environments (package ``ogbench``) as this house uses them: registered on demand, seeded to the last draw.

The package draws some numbers, such as the noise on a maze's start, from NumPy's global generator. Here every
environment has a stream of its own in its place, which `reset(seed=...)` begins anew.
"""

from __future__ import annotations

import dataclasses
import importlib
from types import TracebackType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec


class Missing(ImportError):
    """The package ``ogbench`` is not installed."""


def register() -> None:
    """Make OGBench's ids known to Gymnasium. Raises Missing, which says how to install the package."""
    try:
        for module in ("ogbench.locomaze", "ogbench.manipspace"):
            importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"OGBench needs the extra: pip install 'hoard[ogbench]' ({error})") from error


def spec_of(env_id: str) -> EnvSpec:
    """The specification of one of OGBench's environments, with `OwnRandomness` around it. Raises Missing."""
    register()
    wrapper = WrapperSpec(name="OwnRandomness", entry_point="hoard.envs.ogbench:OwnRandomness", kwargs={})
    return dataclasses.replace(gym.spec(env_id), additional_wrappers=(wrapper,))


class GlobalStream:
    """While it is entered, NumPy's global generator is this stream; afterwards it is what it was before."""

    def __init__(self, *seed: int) -> None:
        words = np.random.SeedSequence(seed).generate_state(4)
        self._own: Any = np.random.RandomState(words).get_state()

    def __enter__(self) -> None:
        self._outside = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._own)  # noqa: NPY002

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._outside)  # noqa: NPY002


class OwnRandomness(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Gives the wrapped environment a `GlobalStream` of its own, seeded by `reset(seed=...)`."""

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._stream = GlobalStream(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._stream = GlobalStream(seed)
        with self._stream:
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        with self._stream:
            return self.env.step(action)

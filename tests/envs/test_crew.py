"""Environments stepped by other processes: the same as here, and clear words when something goes wrong there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import hoard.envs  # noqa: F401  registrations
from hoard.envs.crew import UNSAID, Alone, Crew

MODULE = """
import os, signal
import gymnasium as gym
import numpy as np

class Counting(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-9, 9, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.t = seed % 7 + 1, 0
        return np.array([seed, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        if action[0] == 8:
            raise ZeroDivisionError("a wheel came off")
        if action[0] == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        info = {"success": self.t == 2} if self.length > 1 else {}
        return np.array([self.length, self.t], np.float32), float(action[0]), self.t == self.length, False, info
"""


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """An environment whose module only this process's import path has."""
    (tmp_path / "an_env_of_ones_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return EnvSpec("Counting-v0", entry_point="an_env_of_ones_own:Counting", max_episode_steps=20)


@pytest.fixture
def crew_of():
    with contextlib.ExitStack() as stack:
        yield lambda spec, processes: stack.enter_context(contextlib.closing(Crew(Alone(spec), processes)))


def both(spec, crew, seeds, steps, rng):
    """Play the same episodes here and there, equal bit for bit; returns which have not ended."""
    alone = Alone(spec)
    here, there = alone.reset(seeds), crew.reset(seeds)
    assert here.tobytes() == there.tobytes()
    running = np.ones(len(seeds), bool)
    space = alone.envs[0].action_space
    for _ in range(steps):
        action = rng.uniform(space.low, space.high, (len(seeds), *space.shape)).astype(np.float32)
        ours, theirs = alone.step(action, running), crew.step(action, running)
        for mine, other in zip(ours, theirs):
            assert mine.dtype == other.dtype
            assert mine.tobytes() == other.tobytes()
        running &= ~ours.ended
    alone.close()
    return running


@pytest.mark.parametrize("processes", [2, 3])
def test_other_processes_step_as_this_one_does(processes, crew_of):
    spec = gym.spec("Hopper-v4")
    crew = crew_of(spec, processes)
    # Fewer than before, fewer than processes.
    running = [both(spec, crew, seeds, 25, np.random.default_rng(0)) for seeds in ([5, 6, 7, 8, 9], [3], [1, 2])]
    assert 0 < running[0].sum() < 5  # some have ended before the others


def test_what_ended_keeps_its_observation_and_gets_no_reward(counting, crew_of):
    for stage in (Alone(counting), crew_of(counting, 2)):
        stage.reset([0, 1, 9])  # episodes of 1, 2 and 3 steps
        action, running, seen = np.ones((3, 1), np.float32), np.ones(3, bool), []
        for _ in range(3):
            seen.append(stage.step(action, running))
            running = running & ~seen[-1].ended
        assert [s.obs.tolist() for s in seen] == [
            [[1, 1], [2, 1], [3, 1]],
            [[1, 1], [2, 2], [3, 2]],
            [[1, 1], [2, 2], [3, 3]],
        ]
        assert [s.reward.tolist() for s in seen] == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
        assert [s.ended.tolist() for s in seen] == [[True, False, False], [False, True, False], [False, False, True]]
        assert [s.success.tolist() for s in seen] == [[UNSAID, 0, 0], [UNSAID, 1, 1], [UNSAID, UNSAID, 0]]


def test_an_environment_that_fails_there_is_quoted_here(counting, crew_of):
    crew = crew_of(counting, 2)
    crew.reset([3, 4])
    with pytest.raises(RuntimeError, match=r"Counting-v0 failed in another process:\n(.|\n)*a wheel came off"):
        crew.step(np.array([[1], [8]], np.float32), np.ones(2, bool))


def test_a_process_that_is_killed_is_noticed(counting, crew_of):
    crew = crew_of(counting, 2)
    crew.reset([3, 4])
    with pytest.raises(RuntimeError, match=r"stepped environments Counting-v0 ended with status -9"):
        crew.step(np.array([[1], [9]], np.float32), np.ones(2, bool))


def test_an_environment_that_cannot_be_sent_is_refused():
    spec = EnvSpec("Local-v0", entry_point=lambda: None, max_episode_steps=20)
    with pytest.raises(ValueError, match="Local-v0 cannot be sent to other processes"):
        Crew(SimpleNamespace(spec=spec), 2)
    with pytest.raises(ValueError, match="processes must be 2 or more, got 1"):
        Crew(Alone(gym.spec("Pendulum-v1")), 1)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_one_that_started_it(kind, tmp_path):
    script = """
        import gymnasium as gym, time
        import hoard.envs
        from hoard.envs.crew import Alone, Crew
        crew = Crew(Alone(gym.spec("Hopper-v4")), 3)
        crew.reset([1, 2, 3])
        print(*(child.process.pid for child in crew._children), flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    try:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        assert all(map(alive, children))
        os.kill(parent.pid, kind)
        parent.wait()
        deadline = time.monotonic() + 30
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, children))
    finally:
        parent.kill()

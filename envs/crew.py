"""`Alone` and `Crew`: several environments of one kind, each in an episode of its own, stepped together.

`Crew` shares them among processes, a few to each. What they do is the same bit for bit; it takes less time where
cores are free.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard.envs.make import make_env
from hoard.records.child import Child

UNSAID = -1  # success was not reported
_AWAKE = 0.002  # seconds


class Steps(NamedTuple):
    """What n environments answer: `obs` (n, obs_dim) float32, `reward` (n,) float64, `ended` (n,) bool, `success` (n,)
    int8, `UNSAID` where nothing was reported. Those that did not step keep their observation, with reward 0."""

    obs: np.ndarray
    reward: np.ndarray
    ended: np.ndarray
    success: np.ndarray


class Alone:
    """Steps environments in this process. The first is made at once, the others when they are needed."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self.envs: list[gym.Env] = [make_env(spec)]

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Begin an episode from each seed; returns the observations (n, obs_dim)."""
        while len(self.envs) < len(seeds):
            self.envs.append(make_env(self.spec))
        self._obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds)])
        return self._obs.copy()

    def step(self, action: np.ndarray, running: np.ndarray) -> Steps:
        """Take (n, action_dim), in the environment's units, where `running` (n,) is true."""
        n = len(running)
        reward, ended, success = np.zeros(n), np.zeros(n, bool), np.full(n, UNSAID, np.int8)
        for i in np.flatnonzero(running):
            self._obs[i], reward[i], terminated, truncated, info = self.envs[i].step(action[i])
            ended[i] = terminated or truncated
            if "success" in info:
                success[i] = bool(info["success"])
        return Steps(self._obs.copy(), reward, ended, success)

    def close(self) -> None:
        for env in self.envs:
            env.close()


class Crew:
    """Has environments stepped by `processes` processes, this one and others, the same number by each where it can be.

    Those of `gymnasium.vector` would have one environment each. `alone` is this process's share; close it apart. Raises
    ValueError for an environment that another process cannot be told of.
    """

    def __init__(self, alone: Alone, processes: int) -> None:
        if processes < 2:
            raise ValueError(f"processes must be 2 or more, got {processes}")
        spec = alone.spec
        try:
            told = json.dumps([sys.path, spec.to_json()]).encode()
        except (ValueError, TypeError) as error:
            raise ValueError(f"environment {spec.id} cannot be sent to other processes: {error}") from error
        self._alone = alone
        self._children: list[_Child] = []
        for _ in range(processes - 1):
            self._children.append(_Child(spec.id))
            self._children[-1].send(told)

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Begin an episode from each seed; returns the observations (n, obs_dim)."""
        shares = np.array_split(np.arange(len(seeds)), len(self._children) + 1)
        own, *others = [slice(int(share[0]), int(share[-1]) + 1) for share in shares if len(share)]
        self._own, self._parts = own, list(zip(self._children, others))
        for child, part in self._parts:
            child.send(json.dumps(seeds[part]).encode() + _RESET)
        first = self._alone.reset(seeds[own])
        others_first = [np.frombuffer(child.answer(), np.float32) for child, _ in self._parts]
        return np.concatenate([first, *(obs.reshape(-1, first.shape[1]) for obs in others_first)])

    def step(self, action: np.ndarray, running: np.ndarray) -> Steps:
        """Take (n, action_dim), in the environment's units, where `running` (n,) is true."""
        for child, part in self._parts:
            child.send(action[part].astype(np.float32, copy=False).tobytes() + running[part].tobytes() + _STEP)
        first = self._alone.step(action[self._own], running[self._own])
        answers = [first, *(_unpacked(child.answer(), first.obs.shape[1]) for child, _ in self._parts)]
        return Steps(*(np.concatenate(column) for column in zip(*answers)))

    def close(self) -> None:
        """End the other processes."""
        for child in self._children:
            child.process.close()


class _Child:
    """A process that steps environments for this one."""

    def __init__(self, env_id: str) -> None:
        self._id = env_id
        self.process = Child(_WORKER)
        self._messages = _Messages(self.process.connection)

    def send(self, message: bytes) -> None:
        try:
            self.process.connection.send_bytes(message)
        except OSError as error:
            raise self._lost() from error

    def answer(self) -> bytes:
        try:
            answer = self._messages.receive()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if answer.endswith(_FAILED):
            raise RuntimeError(f"environment {self._id} failed in another process:\n{answer[:-1].decode()}")
        return answer[:-1]

    def _lost(self) -> RuntimeError:
        return RuntimeError(f"a process that stepped environments {self._id} ended with status {self.process.wait()}")


# Messages are bare bytes, the last of which says what they are: pickling took a twentieth of the time in point mazes.
_STEP, _RESET, _DONE, _FAILED = b"s", b"r", b"d", b"f"


def _kind(obs_dim: int) -> np.dtype:
    return np.dtype([("obs", np.float32, obs_dim), ("reward", float), ("ended", bool), ("success", np.int8)])


def _packed(steps: Steps) -> bytes:
    records = np.empty(len(steps.reward), _kind(steps.obs.shape[1]))
    for name, column in zip(Steps._fields, steps):
        records[name] = column
    return records.tobytes()


def _unpacked(message: bytes, obs_dim: int) -> Steps:
    records = np.frombuffer(message, _kind(obs_dim))
    return Steps(*(records[name] for name in Steps._fields))


class _Messages:
    """Receives from a connection, looking for a while before it sleeps.

    To wake a process takes as long as several steps of an environment, on a virtual machine as long as ten.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)

    def receive(self) -> bytes:
        until = time.monotonic() + _AWAKE
        while not self._poll.poll(0) and time.monotonic() < until:
            pass
        return self._connection.recv_bytes()


# The caller's import path comes first of all: the package and the environment's class may be found only there.
_WORKER = """
import json, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:], spec = json.loads(connection.recv_bytes())
from hoard.envs.crew import serve
serve(connection, spec)
"""


def serve(connection: Connection, spec: str) -> None:
    """The life of a child: begin episodes and take steps as it is told, until the other side ends."""
    messages = _Messages(connection)
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            own = Alone(EnvSpec.from_json(spec))
            n = 0
            while True:
                told = messages.receive()
                if told.endswith(_RESET):
                    seeds = json.loads(told[:-1])
                    n = len(seeds)
                    answer = own.reset(seeds).tobytes()
                else:
                    until = len(told) - 1 - n
                    action, running = np.frombuffer(told[:until], np.float32), np.frombuffer(told[until:-1], bool)
                    answer = _packed(own.step(action.reshape(n, -1).copy(), running))  # writable, as it is alone
                connection.send_bytes(answer + _DONE)
        except (EOFError, ConnectionError):
            raise
        except Exception:  # an environment of anybody's: the caller is told
            connection.send_bytes(traceback.format_exc().encode() + _FAILED)
            connection.recv_bytes()  # until it closes

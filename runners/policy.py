"""Trained policies on disk: weights as safetensors, everything else as JSON, the algorithm file beside them.

A policy is rebuilt by its own class: `Actor(cfg, obs_dim, action_dim, generator, ...)` in the algorithm file. What its
constructor takes beyond these four is a number or a string that the module keeps as an attribute of the same name.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hoard.datasets.actions import ActionScaler
from hoard.records import folder as names
from hoard.records.errors import BadInput
from hoard.records.files import read_json, write_atomic, write_json
from hoard.records.schema import SCHEMA_VERSION
from hoard.runners.algorithms import import_file
from hoard.runners.config import from_plain
from hoard.runners.evaluate import Evaluator, History, Witness, act_of, fresh_seed, uses_history
from hoard.runners.task import Task

_GIVEN = ("cfg", "obs_dim", "action_dim", "generator")


def save_policy(folder: Path, actor: nn.Module, algo: str, config: dict[str, Any], task: Task) -> None:
    """Write the policy of a run into its folder. Raises TypeError if it could not be rebuilt from what is written."""
    kind = type(actor)
    names_wanted = list(inspect.signature(kind).parameters)
    if tuple(names_wanted[:4]) != _GIVEN:
        raise TypeError(f"{kind.__name__}: the constructor of a policy begins with {', '.join(_GIVEN)}")
    extra = {name: getattr(actor, name, None) for name in names_wanted[4:]}
    for name, value in extra.items():
        if not isinstance(value, int | float | str | bool):
            raise TypeError(
                f"{kind.__name__}: its argument '{name}' must be kept as an attribute, a number or a string"
            )
    weights = {name: value.detach().contiguous().cpu() for name, value in actor.state_dict().items()}
    write_atomic(folder / names.POLICY, lambda scratch: scratch.write_bytes(save(weights)))
    spec = {
        "schema_version": SCHEMA_VERSION,
        "algo": algo,
        "class": kind.__name__,
        "arguments": extra,
        "config": config,
        "task": task.to_json(),
    }
    write_json(folder / names.POLICY_SPEC, spec)


class Policy:
    """A trained policy: observations in, actions out, as NumPy arrays in the environment's units.

    `policy(obs)` takes one observation (obs_dim,) or a batch (n, obs_dim) and returns (action_dim,) or (n, action_dim),
    clipped to the action space. Observations are raw (flattened by `hoard.envs.make_env` where they are dictionaries);
    what the policy normalises, it normalises itself.

    Where `uses_history` is true, the policy looks back: call `reset()` at the start of an episode (or batch of
    episodes) and give the reward of the step before with every later observation, `policy(obs, reward)`.

    Attributes: `task` (shapes, bounds, environment, reference returns), `algo`, `config`, `actor` (the torch module).
    """

    def __init__(self, actor: nn.Module, task: Task, algo: str, config: dict[str, Any], device: torch.device) -> None:
        self.actor, self.task, self.algo, self.config, self.device = actor, task, algo, config, device
        self.uses_history = uses_history(actor)  # type: ignore[arg-type]
        self._act, self._scaled = act_of(actor)  # type: ignore[arg-type]
        self.scaler = ActionScaler(task.low, task.high, device)
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Forget the past: the next observation is the first of an episode. `seed` is for policies that draw."""
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._history: History | None = None

    @torch.no_grad()
    def __call__(self, obs: np.ndarray, reward: np.ndarray | float | None = None) -> np.ndarray:
        """Raises ValueError for an observation of the wrong shape, or without a reward where one is needed."""
        obs = np.asarray(obs, np.float32)
        if obs.ndim not in (1, 2) or obs.shape[-1] != self.task.obs_dim:
            raise ValueError(
                f"obs has shape {obs.shape}; this policy takes ({self.task.obs_dim},) or (n, {self.task.obs_dim})"
            )
        batch = torch.as_tensor(np.atleast_2d(obs), device=self.device)
        history = self._look(batch, reward)
        action = self._act(batch, history)
        action = (self.scaler.to_env(action) if self._scaled else action).to(torch.float32)
        clipped = np.clip(action.cpu().numpy(), self.task.low, self.task.high)
        if self.uses_history:
            executed = torch.as_tensor(clipped, device=self.device)
            history.action[:, history.t] = self.scaler.to_unit(executed) if self._scaled else executed
        return clipped if obs.ndim == 2 else clipped[0]

    def _look(self, obs: Tensor, reward: np.ndarray | float | None) -> History:
        """What the policy has seen, the present observation included."""
        steps = self.task.episode_limit if self.uses_history else 1
        if self._history is None or not self.uses_history:
            new = lambda *shape: torch.zeros(shape, device=self.device)  # noqa: E731
            n = len(obs)
            seen, done = new(n, steps + 1, self.task.obs_dim), new(n, steps, self.task.action_dim)
            self._history = History(0, seen, done, new(n, steps), self._generator)
        else:
            history = self._history
            if reward is None:
                raise ValueError(
                    "this policy looks back: call reset() at the start of an episode, then policy(obs, reward)"
                )
            if len(obs) != len(history.obs):
                raise ValueError(f"{len(obs)} observations after {len(history.obs)}: call reset() to start again")
            history.reward[:, history.t] = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
            history.t += 1
            if history.t >= steps:
                raise ValueError(f"the episode is longer than the {steps} steps of its environment: call reset()")
        self._history.obs[:, self._history.t] = obs
        return self._history


def load_policy(run: str | Path, device: str = "cpu") -> Policy:
    """The trained policy of a finished run, given its folder.

    It is built by the algorithm file that the run kept, which is Python code: load only runs that you trust. Raises
    BadInput if the folder holds no policy, or one that does not fit the file.
    """
    folder = Path(run)
    if not (folder / names.POLICY_SPEC).is_file():
        raise BadInput(f"{folder}: there is no {names.POLICY_SPEC}; a finished run keeps its policy in its own folder")
    spec = read_json(folder / names.POLICY_SPEC)
    if spec["schema_version"] != SCHEMA_VERSION:
        raise BadInput(f"{folder / names.POLICY_SPEC}: schema version {spec['schema_version']}, not {SCHEMA_VERSION}")
    module = import_file(folder / names.ALGORITHM, spec["algo"])
    task, where = Task.from_json(spec["task"]), torch.device(device)
    generator = torch.Generator(where).manual_seed(0)  # initial weights are replaced below
    kind = getattr(module, spec["class"])
    cfg = from_plain(module.Config, spec["config"])
    actor = kind(cfg, task.obs_dim, task.action_dim, generator, **spec["arguments"])
    try:
        actor.load_state_dict(load_file(folder / names.POLICY, device=str(where)))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise BadInput(f"{folder / names.POLICY}: {error}") from error
    return Policy(actor.eval().requires_grad_(False), task, spec["algo"], spec["config"], where)


def score(
    policy: Policy, episodes: int, seed: int = 0, witness: Witness | None = None, processes: int = 1
) -> list[dict[str, Any]]:
    """Roll a policy out in its environment: one row per episode, as `Evaluator` gives them, `witness` beside it.

    Episode seeds follow from `seed` and are none of a run's own evaluations. So many `processes`, this one among them,
    step the environments. Raises BadInput for less than one episode or process.
    """
    if episodes < 1:
        raise BadInput(f"episodes {episodes}: must be at least 1")
    if processes < 1:
        raise BadInput(f"processes {processes}: must be at least 1")
    evaluator = Evaluator(policy.task, policy.device, processes)
    try:
        seeds = [fresh_seed(seed, k) for k in range(episodes)]
        generator = torch.Generator(policy.device).manual_seed(seed)
        return evaluator(policy.actor, seeds, generator, witness)  # type: ignore[arg-type]
    finally:
        evaluator.close()

"""A trained policy that begins every training episode: jump-start RL, for any algorithm file with the option `guide`.

Uchendu, Xiao, Lu, Zhu, Yan, Simon, Bennice, Fu, Ma, Jiao, Levine, Hausman 2022, "Jump-Start Reinforcement Learning"
(arXiv 2204.02372). The guide acts for the first h steps of an episode and the learner for the rest; every step is the
learner's to train on. A text names guide and schedule: `none`, or the folder of a finished run, then any of

- `schedule=curriculum` (default): h falls from H to 0 in `stages` stages. A stage ends once the mean return of its last
  `window` episodes is no worse than the best such mean so far, less `tolerance` of its size. The paper compares
  evaluations of the combined policy; here training episodes are compared, which cost nothing.
- `schedule=random`: h is drawn uniformly from 0..H for every episode, from the run's seed and the episode's number.
- `steps=H` (default: the time limit), `stages=N` (10), `window=N` (5), `tolerance=B` (0.05).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hoard.records.errors import BadInput
from hoard.runners.policy import load_policy
from hoard.runners.task import Task

_FORMS = "none, or FOLDER[,schedule=curriculum|random][,steps=H][,stages=N][,window=N][,tolerance=B]"


@dataclass(frozen=True)
class Plan:
    """What an option `guide` asks for."""

    folder: str
    schedule: str = "curriculum"
    steps: int | None = None
    stages: int = 10
    window: int = 5
    tolerance: float = 0.05


def parse(text: str) -> Plan | None:
    """None for `none`. Raises BadInput for a text of another form."""
    if text == "none":
        return None
    folder, *parts = text.split(",")
    given: dict[str, Any] = {}
    kinds: dict[str, Any] = {"schedule": str, "steps": int, "stages": int, "window": int, "tolerance": float}
    for part in parts:
        name, _, value = part.strip().partition("=")
        if name not in kinds or name in given:
            raise BadInput(f"guide {text}: '{part}' is unknown or stands there twice; write {_FORMS}")
        try:
            given[name] = kinds[name](value)
        except ValueError:
            raise BadInput(f"guide {text}: {part}: write {_FORMS}") from None
    plan = Plan(folder, **given)
    if plan.schedule not in ("curriculum", "random"):
        raise BadInput(f"guide {text}: schedule must be curriculum or random")
    if min(1 if plan.steps is None else plan.steps, plan.stages, plan.window) < 1 or not 0 <= plan.tolerance < 1:
        raise BadInput(f"guide {text}: steps, stages and window are at least 1, tolerance at least 0 and below 1")
    return plan


class Guide:
    """The guide of one run. Its state between two episodes is what the curriculum knows.

    Raises BadInput if the folder holds no policy, or one for other observations or actions.
    """

    def __init__(self, plan: Plan, task: Task, run_seed: int, device: str) -> None:
        self.plan, self.steps, self._run_seed = plan, plan.steps or task.episode_limit, run_seed
        self.policy = load_policy(plan.folder, device)
        theirs = self.policy.task
        fits = theirs.obs_dim == task.obs_dim and theirs.low.shape == task.low.shape
        if not (fits and np.allclose(theirs.low, task.low) and np.allclose(theirs.high, task.high)):
            raise BadInput(
                f"guide {plan.folder}: its policy ({theirs.dataset}: {theirs.obs_dim} observed numbers, "
                f"{theirs.action_dim} actions) does not fit {task.dataset} ({task.obs_dim} and {task.action_dim})"
            )
        self.stage, self.horizon = 0, self.steps
        self.best: float | None = None
        self.returns: list[float] = []  # of the present stage's episodes

    def begin(self, episode: int) -> None:
        """Start episode number `episode`: how long the guide acts in it is decided here."""
        if self.plan.schedule == "random":
            rng = np.random.default_rng([self._run_seed, episode, 3])
            self.horizon = int(rng.integers(0, self.steps + 1))
        else:
            self.horizon = round(self.steps * (1 - self.stage / self.plan.stages))
        self.policy.reset(episode)

    def action(self, obs: np.ndarray, reward: float | None) -> np.ndarray:
        """The guide's action in the environment's units; `reward` is that of the step before."""
        return self.policy(obs, reward) if self.policy.uses_history else self.policy(obs)

    def ended(self, episode_return: float) -> None:
        """Let the curriculum know how the episode went."""
        if self.plan.schedule == "random" or self.stage == self.plan.stages:
            return
        self.returns.append(episode_return)
        if len(self.returns) < self.plan.window:
            return
        mean = float(np.mean(self.returns[-self.plan.window :]))
        if self.best is None or mean >= self.best - self.plan.tolerance * abs(self.best):
            self.best = mean if self.best is None else max(self.best, mean)
            self.stage, self.returns = self.stage + 1, []

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "best": self.best, "returns": self.returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stage, self.best, self.returns = state["stage"], state["best"], list(state["returns"])

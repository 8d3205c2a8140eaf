"""The Python API: what `import hoard` gives. The command line uses the same functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from hoard.datasets import Dataset
    from hoard.runners.policy import Policy


def load(dataset_id: str, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """A dataset by its id, generated or fetched first where that is needed.

    `hoard/pendulum/mixed-v0` (a recipe), `D4RL/door/human-v2` (Minari), `d4rl:hopper-medium-v2` or `d4rl:FILE.hdf5`.
    `progress(done, total)` is called while it is made. Raises `hoard.datasets.DatasetError` for an unknown id (the
    nearest are named), a missing or damaged file, or data that contradict themselves.
    """
    from hoard import datasets

    return datasets.load(dataset_id, progress)


def train(
    algo: str | Path,
    dataset: str,
    *,
    results: str | Path = "results",
    preset: str | None = None,
    **options: Any,
) -> Path:
    """Train in this process and return the run's folder. A run that was finished before is not trained again.

    `algo` is the name of a file in `algos/` or the path of one anywhere; `options` are the fields of its `Config`.
    Killed and called again with the same arguments, it goes on from its last checkpoint. Raises BadInput for an option
    that does not exist or makes no sense, Busy if another process works on the same run, KeyboardInterrupt after
    Ctrl-C (once a checkpoint is written), and FloatingPointError if the training diverges.
    """
    from hoard.runners.algorithms import find
    from hoard.runners.entry import train_file
    from hoard.runners.run import Stopped

    try:
        return train_file(find(algo), dataset, Path(results), preset, **options)
    except Stopped as stopped:
        raise KeyboardInterrupt(f"stopped; the same call goes on from there ({stopped})") from stopped


def load_policy(run: str | Path, device: str = "cpu") -> Policy:
    """The trained policy of a finished run: a callable from observations to actions, in NumPy arrays.

    The run's own copy of its algorithm file is executed to build it: load only runs that you trust. Raises BadInput if
    the folder holds no policy.
    """
    from hoard.runners import policy

    return policy.load_policy(run, device)


def evaluate(
    run: str | Path, episodes: int = 100, seed: int = 0, device: str = "cpu", processes: int = 1
) -> pd.DataFrame:
    """Score the trained policy of a run in its environment: one row per episode.

    Columns: `eval_seed`, `return`, `length`, `success` (None if the environment has no such signal), `score`. Episode
    seeds follow from `seed` and are none of those that the run was trained or scored with. So many `processes`, this
    one among them, step the environments; the rows are the same. Raises BadInput if there is no policy.
    """
    import pandas as pd

    from hoard.runners import policy

    return pd.DataFrame(policy.score(load_policy(run, device), episodes, seed, processes=processes))


def watch(run: str | Path, out: str | Path, episodes: int = 1, seed: int = 0) -> list[Path]:
    """Record a trained policy at work, without a screen: `out`.mp4 and `out`.gif, whose paths are returned.

    A name that ends in .gif or .mp4 asks for that one alone. The episodes are those of `evaluate` with the same
    `episodes` and `seed`. Raises BadInput if the environment cannot be rendered here, or if there is no policy.
    """
    from hoard.runners import watch as recording

    recording.prepare_offscreen()
    return recording.record(load_policy(run), Path(out), episodes, seed).paths


def paths(of: str | Path, out: str | Path, episodes: int = 20, sample: int = 40, seed: int = 0) -> Path:
    """Draw paths through a maze, `out` ending in .png, .svg or .pdf: of a run's policy and its data, or of a dataset.

    `of` is the folder of a finished run or the id of a dataset. Drawn are `sample` episodes of the data, chosen by
    `seed`, and the policy's `episodes` of `evaluate` with the same `seed`. A run's data are drawn where they are at
    hand. Raises BadInput for an environment that is no maze whose walls are known.
    """
    from hoard import datasets
    from hoard.runners import paths as drawing

    if not Path(of).is_dir():
        return drawing.draw(Path(out), None, str(of), episodes, sample, seed)[0]
    policy = load_policy(of)
    data = policy.task.dataset if datasets.is_at_hand(policy.task.dataset) else None
    return drawing.draw(Path(out), policy, data, episodes, sample, seed)[0]


def results(folder: str | Path = "results") -> pd.DataFrame:
    """Every evaluation episode of a run, a suite or a results folder, one row each.

    Columns: `suite`, `method`, `algo`, `dataset`, `seed`, `variant`, `update`, `env_step`, `final`, `episode`,
    `eval_seed`, `return`, `length`, `success`, `score`, `run`, `status`. Raises BadInput if there are no results.
    """
    from hoard.analysis.results import frame

    return frame(folder)

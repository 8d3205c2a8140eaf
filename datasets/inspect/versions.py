"""`hoard data versions`: how far recorded steps lie from a replay in other versions of their environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import h5py
import mujoco
import numpy as np

from hoard import datasets
from hoard.datasets.d4rl.ids import PREFIX
from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.inspect.replay import replay
from hoard.datasets.minari.metadata import infos_of
from hoard.envs.mujoco_recording import ENV_IDS, ROBOTS, Steps, record, robot_of
from hoard.envs.mujoco_versions import WORLDS

SAMPLE = 10_000  # steps replayed in each version
_HEAD = (
    "| data | replayed in | steps | left out | next observation: median | 95 % | max | within 1e-6 "
    "| reward: median | 95 % | max | within 1e-6 | reward where it fails |\n|---|---|" + "--:|" * 11
)


def compare(dataset_id: str, sample: int = SAMPLE, seed: int = 0) -> dict[str, Any]:
    """Replay `sample` steps of a dataset, chosen by `seed`, in each of `hoard.envs.mujoco_versions.WORLDS`.

    `dataset_id` is a dataset's, or one of `ENV_IDS` for that many steps of random actions recorded now, with `seed`.
    Gives id, versions of gymnasium and mujoco, and `replays`: one `Errors.summary` for each world. Raises DatasetError
    for data of other environments.
    """
    if dataset_id in ENV_IDS:
        steps, rows = record(dataset_id, sample, seed), np.arange(sample)
    else:
        check_id(dataset_id)
        data = datasets.load(dataset_id)
        rows = np.sort(np.random.default_rng(seed).permutation(len(data))[:sample])
        steps = steps_of(data, rows)
    return {
        "id": dataset_id,
        "gymnasium": gym.__version__,
        "mujoco": mujoco.__version__,
        "replays": [replay(steps, world, rows).summary() for world in WORLDS],
    }


def check_id(dataset_id: str) -> None:
    """Raise DatasetError unless this is an id that `compare` takes: a dataset's or one of `ENV_IDS`."""
    if dataset_id in ENV_IDS:
        return
    if dataset_id in gym.registry:
        raise DatasetError(f"{dataset_id}: there are recordings of {', '.join(ENV_IDS)} only, or give a dataset's id")
    datasets.check_id(dataset_id)


def steps_of(data: Dataset, rows: np.ndarray) -> Steps:
    """A dataset as `Steps`, with the simulator's states where the files hold them (Minari: in episodes of `rows`).

    Raises DatasetError for data of an environment that cannot be replayed in other versions.
    """
    is_d4rl = data.id.startswith(PREFIX)
    metadata = None if is_d4rl else datasets.metadata_of(data.id)
    spec = (metadata or {}).get("recording_env") or data.env_spec
    if spec is None:
        hint = "; +as=NAME says what the file is like" if is_d4rl else ""
        raise DatasetError(f"{data.id}: its environment is not known, so its steps cannot be replayed{hint}")
    try:
        robot = robot_of(spec.id)
    except ValueError as error:
        raise DatasetError(f"{data.id}: {error}") from error
    columns: dict[str, Any] = {
        "observation": data.obs,
        "action": data.action,
        "next_observation": data.next_obs,
        "reward": data.reward,
        "terminated": data.terminated,
    }
    first = data.timestep == 0
    if is_d4rl:
        columns |= _from_file(data)
    elif metadata:
        columns |= _from_infos(data, rows if not ROBOTS[robot].lags else np.union1d(rows, np.maximum(rows - 1, 0)))
    try:
        return Steps(robot, first=first, **columns)
    except ValueError as error:
        raise DatasetError(f"{data.id}: {error}") from error


def _from_file(data: Dataset) -> dict[str, np.ndarray]:
    """What a D4RL file says of each transition beyond the loaded arrays, in the file's own precision."""
    try:
        with h5py.File(data.source, "r") as file:
            count = len(file["rewards"])
            row = np.arange(count) if len(data) == count else data.rows  # +full keeps every row of the file
            out = {"next_observation": data.next_obs}
            if "next_observations" in file:
                out["next_observation"] = file["next_observations"][()][row]
            else:  # the row after a terminal one belongs to another episode
                out["next_observation"][data.terminated] = np.nan
            for name, key in (("observation", "observations"), ("action", "actions"), ("reward", "rewards")):
                out[name] = file[key][()].reshape(count, -1)[row]
            out["reward"] = out["reward"][:, 0]
            if "infos/qpos" in file and "infos/qvel" in file:
                out |= {name: file[f"infos/{name}"][()][row] for name in ("qpos", "qvel")}
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise DatasetError(f"{data.id}: {data.source} cannot be read for a replay: {error}") from error
    return out


def _from_infos(data: Dataset, rows: np.ndarray) -> dict[str, np.ndarray]:
    """qpos and qvel of a Minari dataset's infos for `rows`, NaN elsewhere; nothing if the first episode has none."""
    found = infos_of(data.id, 0)
    if "qpos" not in found or "qvel" not in found:
        return {}
    out = {name: np.full((len(data), np.shape(found[name])[1]), np.nan) for name in ("qpos", "qvel")}
    for episode in np.unique(data.episode_index[rows]).tolist():
        infos = infos_of(data.id, episode)
        chosen = rows[data.episode_index[rows] == episode]
        for name, array in out.items():
            array[chosen] = np.asarray(infos[name])[data.timestep[chosen]]
    return out


def as_markdown(comparisons: list[dict[str, Any]]) -> str:
    """The table of the documentation: a row for each dataset and world."""
    lines = [_HEAD]
    for comparison in comparisons:
        for one in comparison["replays"]:
            left = [f"{count:,} {reason}" for reason, count in one["left_out"].items()]
            if one["next_unknown"]:
                left.append(f"{one['next_unknown']:,} next observations not recorded")
            failing = one["failing"]
            fails = f"{failing['reward_difference']:+.3f} ({failing['steps']:,})" if failing["steps"] else "none fails"
            cells = [f"`{comparison['id']}`", one["world"], f"{one['steps']:,}", ", ".join(left) or "0"]
            cells += [*_cells(one["obs"]), *_cells(one["reward"]), fails]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(quantiles: dict[str, float] | None) -> list[str]:
    if quantiles is None:
        return [""] * 4
    return [*(f"{quantiles[key]:.1e}" for key in ("median", "p95", "max")), f"{100 * quantiles['exact']:.1f} %"]

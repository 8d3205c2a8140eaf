"""A recording of a recipe, stored in Minari's format."""

from __future__ import annotations

import minari
from minari.dataset.minari_storage import MinariStorage

from hoard.datasets.dataset import DatasetError
from hoard.datasets.minari import store
from hoard.datasets.recording import Recording


def write(dataset_id: str, recording: Recording) -> None:
    """Store a recording in Minari's HDF5 format: written beside its place, then renamed, so whole or absent."""
    target = store.path_of(dataset_id)
    if target.exists():
        raise DatasetError(f"{dataset_id}: {target} exists already")
    try:
        with store.scratch(dataset_id) as scratch:
            storage = MinariStorage.new(
                scratch / "data",
                observation_space=recording.observation_space,
                action_space=recording.action_space,
                env_spec=recording.env_spec,
                data_format="hdf5",
            )
            storage.update_episodes(recording.episodes)
            measured = recording.reference_episodes
            storage.update_metadata(
                ({} if measured is None else {"num_episodes_average_score": measured})
                | {
                    "dataset_id": dataset_id,
                    "eval_env_spec": recording.eval_env_spec.to_json(),
                    "ref_min_score": recording.ref_min_score,
                    "ref_max_score": recording.ref_max_score,
                    "algorithm_name": recording.algorithm_name,
                    "description": recording.description,
                    "author": {"hoard"},
                    "minari_version": minari.__version__,
                }
            )
            store.publish(scratch, dataset_id)
    except OSError as error:
        raise DatasetError(f"{dataset_id}: cannot write {target} ({error})") from error

"""What the d4rl package makes of files: run by an interpreter that has d4rl 1.1, see `.ci/d4rl-parity`.

    PYTHON d4rl_oracle.py FOLDER

For each FOLDER/NAME.hdf5 writes FOLDER/NAME.npz with what `d4rl.qlearning_dataset` returns, and FOLDER/infos.json with
the package's addresses and reference scores. A file without `timeouts` names its time limit in the attribute `limit`.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

sys.modules["mujoco_py"] = None  # its import fails in a way that d4rl does not expect
os.environ["D4RL_SUPPRESS_IMPORT_ERROR"] = "1"

import d4rl  # noqa: E402
import h5py  # noqa: E402
import numpy as np  # noqa: E402

folder = Path(sys.argv[1])
for path in sorted(folder.glob("*.hdf5")):
    with h5py.File(path) as file:
        env = SimpleNamespace(_max_episode_steps=file.attrs.get("limit"))
        dataset = {key: file[key][()] for key in file if isinstance(file[key], h5py.Dataset)}
    for key in ("rewards", "terminals"):  # as OfflineEnv.get_dataset does
        if dataset[key].shape == (len(dataset["observations"]), 1):
            dataset[key] = dataset[key][:, 0]
    np.savez(path.with_suffix(".npz"), **d4rl.qlearning_dataset(env, dataset=dataset))
infos = d4rl.infos
with open(folder / "infos.json", "w") as out:
    json.dump({"urls": infos.DATASET_URLS, "low": infos.REF_MIN_SCORE, "high": infos.REF_MAX_SCORE,
               "example": d4rl.get_normalized_score("hopper-medium-v2", 1000.0)}, out)  # fmt: skip

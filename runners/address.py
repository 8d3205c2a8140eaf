"""The address of a run: a hash of all that determines its result, and of nothing else.

It covers the meaning of the algorithm file (not its comments), the options that can change a number, the data with
their evaluation environment, the seed, the kind of device, the versions of the libraries that move numbers, and
`EPOCH`, which stands for the shared code.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from typing import Any

from hoard.records.names import dataset_slug

# Raise it with any change of shared code after which the same seed gives other numbers: runs made before are then
# made anew. tests/runners/test_address.py holds the numbers of the present epoch.
EPOCH = 1

# Options of every Config that change no number.
NEUTRAL = ("log_every", "checkpoint_every")


@cache  # asked for every cell of a sweep
def moving_versions() -> dict[str, str]:
    """Of the libraries whose upgrades move numbers, as much of the version as does it."""
    parts = {"mujoco": 2, "gymnasium": 1, "torch": 1}
    return {name: ".".join(version(name).split(".")[:count]) for name, count in parts.items()}


def address(algo: str, meaning: str, config: dict[str, Any], data_hash: str) -> str:
    """`runs/<algorithm>/<dataset>/<seed>-<hash>`, relative to the results folder.

    `meaning` is `records.meaning.meaning_hash` of the file, `config` the resolved options.
    """
    relevant = {name: value for name, value in config.items() if name not in NEUTRAL}
    relevant["device"] = str(config["device"]).split(":")[0]
    text = json.dumps([EPOCH, moving_versions(), meaning, relevant, data_hash], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"runs/{algo}/{dataset_slug(config['dataset'])}/{config['seed']}-{digest}"

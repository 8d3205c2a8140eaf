"""What made a result: code revision, file and data hashes, library versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hoard.datasets import Dataset

ROOMS = ("algos", "analysis", "datasets", "envs", "hoard", "runners")


def library_versions() -> dict[str, str]:
    """Versions of Python, hoard and the libraries behind a result; 'absent' for what is not installed."""
    names = ("hoard", "torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "h5py")
    out = {"python": platform.python_version()}
    for name in names:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "absent"
    return out


def data_facts(data: Dataset) -> dict[str, Any]:
    """Id, hash and size of a dataset, and how its episodes' returns are distributed: 101 quantiles, of five digits."""
    quantiles = np.quantile(data.returns.astype(np.float64), np.linspace(0, 1, 101))
    return {
        "id": data.id,
        "sha256": data.content_hash,
        "transitions": len(data),
        "episodes": data.num_episodes,
        "returns": [float(f"{value:.5g}") for value in quantiles],
    }


def machine() -> str:
    """Kind of machine, such as `Linux x86_64, 2 CPU cores`."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"


def code_revision() -> str:
    """Git revision of hoard's own checkout, with `+changes` for edited or new files in its rooms.

    The version, such as `hoard 0.2.0`, where hoard is installed without a checkout; a repository that merely encloses
    the installation is not asked.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        _git(root, "ls-files", "--error-unmatch", "hoard/__init__.py")
        if Path(top).resolve() != root:
            return f"hoard {version('hoard')}"
        changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *ROOMS)
        return _git(root, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"hoard {version('hoard')}"


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def command() -> list[str]:
    """The command line of this process, the program by its name alone."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]

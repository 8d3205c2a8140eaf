"""Whose revision stands beside a result."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from helpers import ROOT

ASK = "from hoard.runners.provenance import code_revision; print(code_revision())"


def git(folder: Path, *args: str) -> str:
    name = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    done = subprocess.run(["git", "-C", str(folder), *name, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def asked_in(folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", ASK], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def code(tmp_path):
    """The package alone, as an installation holds it: real folders, no links."""
    folder = tmp_path / "lib"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hoard", folder / "hoard", ignore=ignored)
    return folder


def test_a_checkout_has_its_own_revision(tmp_path):
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("hoard", "runners", "algos", "analysis", "datasets", "envs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "one")
    revision = git(folder, "rev-parse", "HEAD")
    assert asked_in(folder) == revision
    (folder / "notes.txt").write_text("a file beside the code")
    assert asked_in(folder) == revision
    (folder / "algos" / "mine.py").write_text("")
    assert asked_in(folder) == f"{revision}+changes"


def test_an_installation_has_its_version(code):
    assert asked_in(code) == f"hoard {version('hoard')}"


def test_a_repository_around_the_installation_is_not_ours(code):
    """A user's project with its environment inside: its revision says nothing about hoard."""
    git(code.parent, "init", "-q")
    (code.parent / "notes.txt").write_text("theirs")
    git(code.parent, "add", "notes.txt")
    git(code.parent, "commit", "-q", "-m", "theirs")
    assert asked_in(code) == f"hoard {version('hoard')}"
    git(code.parent, "add", "-A")  # even where they keep it under their version control
    git(code.parent, "commit", "-q", "-m", "all")
    assert asked_in(code) == f"hoard {version('hoard')}"

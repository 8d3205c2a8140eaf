"""The command line of a small study, and a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from studies import SMALL


def postgres_tools() -> Path | None:
    """The folder of initdb and pg_ctl, which distributions keep out of the way."""
    places = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found = shutil.which("initdb")
    return Path(found).parent if found else max(places, default=None)


@pytest.fixture
def postgresql(tmp_path_factory):
    """URL of an empty database on a server of its own; skips where PostgreSQL is missing."""
    pytest.importorskip("psycopg")
    tools = postgres_tools()
    if tools is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    as_user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="hoard-postgresql-"))  # its socket needs a short path
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        try:
            shutil.chown(folder, "postgres")
        except LookupError:
            pytest.skip("there is no user postgres to run the server as")
        as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]

    def run(tool: str, *args: str) -> None:
        done = subprocess.run(
            [*as_user, str(tools / tool), *args], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    data, log = str(folder / "data"), str(folder / "log")
    run("initdb", "--pgdata", data, "--username", "hoard", "--auth", "trust", "--no-sync")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "start", "--wait", "--pgdata", data, "--log", log, "--options", options)
    try:
        yield f"postgresql+psycopg://hoard@/postgres?host={folder}"
    finally:
        run("pg_ctl", "stop", "--pgdata", data, "--mode", "immediate")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tune(tiny, tmp_path):
    """The command line of a study of BC on the tiny dataset; options given later win."""

    def command(
        *args: object, algo: object = "bc", results: Path | None = None, options: tuple[str, ...] = ()
    ) -> list[str]:
        given = [tiny, "--study", "small", "--results", results or tmp_path / "results", *args]
        return ["tune", str(algo), *map(str, given), "--set", *SMALL, *options]

    return command

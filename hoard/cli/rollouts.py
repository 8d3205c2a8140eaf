"""`hoard report --rollouts`: a film of each method's typical policy on each dataset, and its paths in a maze."""

from __future__ import annotations

from pathlib import Path

from hoard.records.errors import BadInput
from hoard.records.folder import FILM, PATHS, POLICY_SPEC

WIDTH, MOST = 240, 200  # of a film for the report: pixels, and pictures


def record(folder: Path, everything: bool) -> None:
    """Record what is not there yet, into the folders of the runs; a line for each, also for what cannot be recorded.

    Raises BadInput where the run folders are gone.
    """
    from hoard import api
    from hoard.analysis import results, run_files
    from hoard.runners import paths, watch

    watch.prepare_offscreen()  # before anything imports a renderer
    loaded = results.load(folder, everything=everything)
    runs = run_files.folders(loaded, folder)
    if not runs:
        raise BadInput(f"{folder}: the folders of its runs are gone, and with them the policies")
    for number in run_files.medians(loaded):
        run = runs.get(number)
        if run is None or not (run / POLICY_SPEC).is_file():
            print(f"{loaded.cells['run'].iloc[number]}: it has kept no policy")
            continue
        try:
            policy = api.load_policy(run)
            if not (run / PATHS).is_file() and paths.is_maze(policy.task.env_spec):
                print(api.paths(run, run / PATHS))
            if not (run / FILM).is_file():
                watch.record(policy, run / FILM, width=WIDTH, most=MOST)
                print(run / FILM, flush=True)
        except BadInput as error:
            print(f"{run}: {error}")

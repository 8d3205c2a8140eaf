"""The page of compiled runs shows what its archives hold."""

import json
import re

import pandas as pd
import pytest
from helpers import ROOT
from synthetic import script

FOLDER = ROOT / "experiments" / "compiled"
overlay = script(FOLDER / "overlay.py")


def test_the_table_is_that_of_the_archives():
    (shown,) = re.findall(r"<!-- overlay -->\n(.*?)\n<!-- /overlay -->", (FOLDER / "README.md").read_text(), re.S)
    assert shown == overlay.table(*overlay.both())


def test_both_sides_are_the_same_runs_but_for_the_compiler():
    eager, compiled = overlay.both()
    keys = ["method", "seed", "step"]
    assert eager[keys].sort_values(keys).to_numpy().tolist() == compiled[keys].sort_values(keys).to_numpy().tolist()
    assert len(set(eager["method"])) == 17


@pytest.mark.parametrize("part", ["offline", "online", "eager"])
def test_the_options_differ_in_compile_alone(part):
    eager = {}
    for folder in ("offline", "hybrid"):
        record = json.loads((FOLDER.parent / folder / "cells.json").read_text())
        eager |= {(folder, c["method"], c["dataset"]): c["overrides"] for c in record["cells"]}
    record = json.loads((FOLDER / part / "cells.json").read_text())
    for cell in record["cells"]:
        other = eager[record["suite"], cell["method"], cell["dataset"]]
        mine = {k: v for k, v in cell["overrides"].items() if k != "compile"}
        assert mine == {k: v for k, v in other.items() if k != "compile"}, cell["method"]
        assert ("compile" in cell["overrides"]) == (part != "eager")
    assert f"`{record['provenance']['revision'][:12]}`" in (FOLDER / "README.md").read_text()


def test_online_curves_go_over_environment_steps(tmp_path):
    rows = [(500, 0, 7.0, ""), (0, 500, 1.0, ""), (0, 500, 3.0, ""), (10, 1000, 5.0, ""), (10, 1000, 9.0, "sampled")]
    frame = pd.DataFrame(rows, columns=["update", "env_step", "score", "variant"])
    frame.assign(method="sac", seed=0, dataset=overlay.DATASET).to_parquet(tmp_path / "episodes.parquet")
    assert overlay.curves(tmp_path)[["step", "score"]].to_numpy().tolist() == [[500, 2.0], [1000, 5.0]]

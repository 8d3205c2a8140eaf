"""Each experiment's page shows what its files hold, and its tables are those of the present code."""

import json
import re
import shutil

import pytest
from helpers import ROOT

from hoard.analysis import report, results

EXPERIMENTS = ROOT / "experiments"
NAMES = sorted(path.parent.name for path in EXPERIMENTS.glob("*/cells.json"))


def test_every_experiment_is_in_the_index():
    linked = re.findall(r"\]\(([\w-]+)/README\.md\)", (EXPERIMENTS / "README.md").read_text())
    assert sorted(linked) == sorted(page.parent.name for page in EXPERIMENTS.glob("*/README.md"))
    assert set(NAMES) <= set(linked)


@pytest.mark.parametrize("name", NAMES)
def test_page_names_the_revisions_that_made_it(name):
    page = (EXPERIMENTS / name / "README.md").read_text()
    made = json.loads((EXPERIMENTS / name / "cells.json").read_text())["provenance"]["revision"]
    for revision in made.split(", "):
        assert f"`{revision[:12]}`" in page


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#:]+)\)", (EXPERIMENTS / name / "README.md").read_text()):
        assert (EXPERIMENTS / name / target).exists(), target


def test_tables_are_shown():
    shown = {path.parent.name for path in EXPERIMENTS.glob("*/README.md") if "<!-- table -->" in path.read_text()}
    assert shown >= {"stitch", "paper-mbrcsl", "sequence", "paper-hnpg", "hybrid", "door-human", "locomotion"}


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_those_of_the_present_code(name, tmp_path):
    for file in ("cells.json", "episodes.parquet"):
        shutil.copy(EXPERIMENTS / name / file, tmp_path)
    built = report.build(tmp_path)
    assert built.markdown.read_text() == (EXPERIMENTS / name / "table.md").read_text()
    assert built.csv.read_text() == (EXPERIMENTS / name / "table.csv").read_text()


def test_an_experiment_as_a_data_frame():
    frame = results.frame(EXPERIMENTS / "learning")
    assert len(frame) == 8400
    assert set(frame["status"]) == {"finished"}

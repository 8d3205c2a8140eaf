"""Each experiment's page shows what its files hold, and its tables are those of the present code."""

import json
import re
import shutil

import pytest
from helpers import ROOT
from synthetic import script

from hoard.analysis import report, results

paired = script(ROOT / "tools" / "paired.py")
pooled = script(ROOT / "tools" / "pooled.py")

EXPERIMENTS = ROOT / "experiments"
NAMES = sorted(path.parent.name for path in EXPERIMENTS.glob("*/cells.json"))


def cells_of(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


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


@pytest.mark.parametrize("name", NAMES)
def test_rows_shown_are_rows_of_the_table(name):
    """Maybe without some columns, but to the last digit."""
    folder = EXPERIMENTS / name
    source = [cells_of(line) for line in (folder / "table.md").read_text().splitlines() if "|" in line]
    for block in re.findall(r"<!-- table -->\n(.*?)<!-- /table -->", (folder / "README.md").read_text(), re.S):
        rows = [cells_of(line) for line in block.splitlines() if line.startswith("|")][2:]
        assert rows
        for row in rows:
            shown = [cell for cell in row if re.search(r"\[.*\]| at |/\d+\)", cell)]  # intervals, values at steps
            shown = shown or [cell for cell in row if cell]  # of one seed: everything
            assert any(set(shown) <= set(known) for known in source), row


@pytest.mark.parametrize("name", NAMES)
def test_paired_differences_are_those_of_the_runs(name):
    """`<!-- paired A B C D -->`: what `tools/paired.py` prints for these methods."""
    folder = EXPERIMENTS / name
    page = (folder / "README.md").read_text()
    for methods, block in re.findall(r"<!-- paired ([\w ]+) -->\n(.*?)<!-- /paired -->", page, re.S):
        pairs = list(zip(methods.split()[::2], methods.split()[1::2], strict=True))
        lines = [paired.HEAD, *paired.rows(results.load(folder), pairs)]
        assert block.split("\n") == [*"\n".join(lines).split("\n"), ""]


@pytest.mark.parametrize("name", NAMES)
def test_pooled_datasets_are_those_of_the_runs(name):
    """`<!-- pooled PATTERN PATTERN -->`: what `tools/pooled.py` prints for these datasets."""
    folder = EXPERIMENTS / name
    page = (folder / "README.md").read_text()
    for patterns, block in re.findall(r"<!-- pooled ([^>]+) -->\n(.*?)<!-- /pooled -->", page, re.S):
        loaded = results.load(folder)
        lines = [pooled.head(pooled.measure_of(loaded)), *pooled.rows(loaded, patterns.split())]
        assert block.split("\n") == [*"\n".join(lines).split("\n"), ""]


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

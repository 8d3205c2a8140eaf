"""The README shows what the committed experiment holds."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("suite", ["learning"])
def test_table_is_the_experiments_table(suite):
    shown = re.search(rf"<!-- table:{suite} -->\n(.*?)<!-- /table -->", README, re.S)
    assert shown
    rows = [line for line in shown[1].splitlines() if line.startswith("|")][2:]
    table = (ROOT / "analysis" / "experiments" / suite / "table.md").read_text().split("## Settings")[0]
    source = {tuple(cells[:2]): cells for cells in map(cells_of, table.splitlines()) if len(cells) > 5}
    assert rows
    for row in rows:
        dataset, method, *numbers = cells_of(row)
        for number in numbers:
            assert number in source[dataset, method], f"{number} is not in the {suite} table"


def test_the_papers_table_is_the_experiments_and_the_published_one():
    """One dataset, so no column for it; the last column is the paper's, from the file of published numbers."""
    shown = re.search(r"<!-- table:paper-mbrcsl -->\n(.*?)<!-- /table -->", README, re.S)
    assert shown
    table = (ROOT / "analysis" / "experiments" / "paper-mbrcsl" / "table.md").read_text().split("## ")
    ours = {cells[1]: cells for cells in map(cells_of, table[1].splitlines()) if len(cells) > 5}
    (beside,) = (part for part in table if part.startswith("Beside"))
    theirs = {cells[0]: cells[-1] for cells in map(cells_of, beside.splitlines())}
    rows = [line for line in shown[1].splitlines() if line.startswith("|")][2:]
    assert {cells_of(row)[0] for row in rows} == set(ours) - {"method", ":--"}
    for row in rows:
        method, *numbers, paper = cells_of(row)
        for number in numbers:
            assert number in ours[method], f"{number} is not in the table of {method}"
        assert paper == theirs[method].replace("–", "")


def test_tables_of_the_experiments_page_are_those_of_the_experiments():
    """Each row shown is a row of the suite's own tables, maybe without some columns, to the last digit."""
    folder = ROOT / "analysis" / "experiments"
    blocks = re.findall(r"<!-- table:([\w-]+) -->\n(.*?)<!-- /table -->", (folder / "README.md").read_text(), re.S)
    assert {name for name, _ in blocks} >= {"stitch", "paper-mbrcsl", "sequence", "paper-hnpg", "hybrid"}
    for name, block in blocks:
        source = [cells_of(line) for line in (folder / name / "table.md").read_text().splitlines() if "|" in line]
        rows = [cells_of(line) for line in block.splitlines() if line.startswith("|")][2:]
        assert rows
        for row in rows:
            shown = [cell for cell in row if re.search(r"\[.*\]| at |/\d+\)", cell)]  # intervals, values at steps
            assert shown
            assert any(set(shown) <= set(known) for known in source), f"{name}: {row}"


def cells_of(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def test_every_path_and_picture_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:algos|runners|analysis|datasets|envs|tests)/[\w./]*)`", README):
        if "my_" not in target:
            assert (ROOT / target).exists(), target


def test_datasets_and_suites_named_are_known():
    from hoard.datasets import recipes
    from hoard.runners import suite as suites

    for dataset_id in re.findall(r"hoard/[a-z0-9]+/[a-z0-9-]+-v0", README):
        assert recipes.is_known(dataset_id), dataset_id
    for name in re.findall(r"SUITE=([\w-]+)", README):
        assert name in suites.available()

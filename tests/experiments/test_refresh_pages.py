"""Tables on pages are those of the experiments, and `tools/refresh_pages.py` makes them so."""

from __future__ import annotations

import pytest
from helpers import ROOT
from synthetic import script

tool = script(ROOT / "tools" / "refresh_pages.py")

TABLE = """## Last scores

| dataset | method | n | mean [95 %] | return |
| :-- | :-- | --: | --: | --: |
| a/b-v0 | bc | 5 | 1.5 [1.0, 2.0] | 7.0 |
| a/b-v0 | iql | 5 | 2.5 [2.0, 3.0] | 8.0 |
| c/d-v0 | bc | 5 | 3.5 [3.0, 4.0] | 9.0 |

## Over the suite

| method | mean [95 %] | bc beats it |
| :-- | --: | --: |
| bc | 2.5 [2.0, 3.0] | – |

## Variants

| dataset | method | variant | n | mean [95 %] |
| :-- | :-- | :-- | --: | --: |
| a/b-v0 | bc | sampled | 5 | 0.5 [0.0, 1.0] |
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "table.md").write_text(TABLE)
    return path


@pytest.mark.parametrize("page", tool.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_page_is_up_to_date(page):
    assert tool.refreshed(page) == page.read_text()


def test_cells_are_replaced_and_what_is_the_pages_own_stays(folder):
    body = (
        "| dataset | method | paper | mean [95 %] | n |\n|---|---|--:|--:|--:|\n"
        "| `c/d-v0` | bc | 99 | 0.0 [0.0, 0.0] | 3 |\n| `a/b-v0` | iql |  |  | 3 |\n"
    )
    assert tool.shown(folder, body).splitlines()[2:] == [
        "| `c/d-v0` | bc | 99 | 3.5 [3.0, 4.0] | 5 |",
        "| `a/b-v0` | iql |  |  | 5 |",
    ]


@pytest.mark.parametrize(
    ("head", "line", "new"),
    [
        ("method | mean [95 %] | bc beats it", "bc | 0 | 0", "bc | 2.5 [2.0, 3.0] | –"),
        (
            "dataset | method | variant | n | mean [95 %]",
            "a/b-v0 | bc | sampled | 3 | 0",
            "a/b-v0 | bc | sampled | 5 | 0.5 [0.0, 1.0]",
        ),
        (
            "dataset | method | variant | n | mean [95 %]",
            "a/b-v0 | bc | (headline) | 3 | 0",
            "a/b-v0 | bc | (headline) | 5 | 1.5 [1.0, 2.0]",
        ),
    ],
)
def test_a_row_is_that_of_its_own_table(folder, head, line, new):
    assert tool.shown(folder, f"| {head} |\n|---|\n| {line} |\n").splitlines()[2] == f"| {new} |"


@pytest.mark.parametrize("row", ["a/b-v0 | cql | 3", "c/d-v0 | iql | 3", "gone | bc | 3"])
def test_a_row_without_a_source_is_named(folder, row):
    with pytest.raises(ValueError, match=r"no row of mine/table\.md is that of"):
        tool.shown(folder, f"| dataset | method | n |\n|---|---|--:|\n| {row} |\n")


def test_two_rows_that_may_be_meant_are_no_source(folder):
    with pytest.raises(ValueError, match="no row of"):
        tool.shown(folder, "| method | return |\n|---|--:|\n| bc | 1.0 |\n")

"""Paths through a maze: the episodes of an evaluation and of the data, alike in colour and in line style."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

import hoard
from hoard.datasets.minari import writer
from hoard.datasets.recipes import stitch
from hoard.envs.layout import layout_of
from hoard.records import media
from hoard.records.errors import BadInput
from hoard.runners import paths
from hoard.runners.paths import LOOKS, Panel, Walk

STITCH = "test/stitch-v0"


@pytest.fixture(scope="module")
def maze_run(tmp_path_factory):
    """Cloning, for a moment, of a few walks through the point maze."""
    writer.write(STITCH, stitch.record(trajectories=12, reference_episodes=2))
    options = {"updates": 20, "hidden": (8,), "log_every": 10, "eval_every": 20, "final_eval_episodes": 2}
    return hoard.train("bc", STITCH, results=tmp_path_factory.mktemp("maze"), **options)


def test_a_run_and_its_data_are_drawn(maze_run, tmp_path):
    out = hoard.paths(maze_run, tmp_path / "paths.png", episodes=3, sample=5, seed=4)
    record = media.read_record(out)
    assert record["episodes"] == hoard.evaluate(maze_run, episodes=3, seed=4).to_dict("records")
    assert f"Paths through the maze of {STITCH}. Data, 5 of 48 episodes: return " in record["alt"]
    assert " bc, 3 evaluation episodes: goal " in record["alt"]
    again = hoard.paths(maze_run, tmp_path / "again.png", episodes=3, sample=5, seed=4)
    assert again.read_bytes() == out.read_bytes()
    alone = hoard.paths(STITCH, tmp_path / "data.svg")
    assert "Data, 40 of 48 episodes" in alone.read_text()


def test_what_cannot_be_drawn_is_refused(maze_run, tiny, tmp_path):
    with pytest.raises(BadInput, match="Pendulum-v1 is no maze whose walls are known here"):
        hoard.paths(tiny, tmp_path / "a.png")
    with pytest.raises(BadInput, match=r"a\.jpg: the name must end in \.png, \.svg, \.pdf"):
        hoard.paths(maze_run, tmp_path / "a.jpg")
    with pytest.raises(BadInput, match="there is no folder"):
        hoard.paths(maze_run, tmp_path / "nowhere" / "a.png")
    with pytest.raises(BadInput, match="0 episodes of the data"):
        hoard.paths(maze_run, tmp_path / "a.png", sample=0)


def walk(total: float, success: bool | None = None) -> Walk:
    return Walk(np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 0.2]]), total, success)


def test_outcomes_differ_in_colour_and_in_line_style():
    groups = paths._groups([walk(1.0, True), walk(0.0, False), walk(0.5, True)])
    assert [(name, len(own)) for name, own, _ in groups] == [("goal reached", 2), ("goal not reached", 1)]
    groups = paths._groups([walk(float(k)) for k in range(9)])
    assert [(name, len(own)) for name, own, _ in groups] == [
        ("return 6 to 8", 3), ("return 3 to 5", 3), ("return 0 to 2", 3)
    ]  # fmt: skip
    assert [name for name, *_ in paths._groups([walk(0.0)] * 8 + [walk(7.0)])] == ["return 7", "return 0"]
    assert [name for name, *_ in paths._groups([walk(0.0)] * 3)] == ["return 0"]
    for what in ("color", "linestyle"):
        assert len({str(look[what]) for look in LOOKS}) == len(LOOKS)


def test_the_figure_has_every_wall_path_and_start():
    layout = layout_of("hoard/StitchMaze-v0")
    panels = [Panel("one", [walk(1.0, True), walk(0.0, False)]), Panel("other", [walk(2.0)])]
    drawn = paths.figure(layout, panels, "a maze")
    first, second = drawn.axes
    assert [len(axes.patches) for axes in drawn.axes] == [len(layout.walls) + 1] * 2  # and the goal's circle
    lines = [line for line in first.get_lines() if len(line.get_xdata()) == 3]
    assert [to_hex(line.get_color()) for line in lines] == [LOOKS[0]["color"], LOOKS[2]["color"]]
    assert [text.get_text() for text in first.get_legend().get_texts()] == [
        "goal reached (1)", "goal not reached (1)", "start", "goal"
    ]  # fmt: skip
    assert second.get_title() == "other\nmean return 2"


def test_a_leap_is_no_way_walked():
    line = paths._unbroken(np.array([[0.0, 0.0], [0.5, 0.0], [9.0, 0.0], [9.5, 0.0]]), 1.0)
    assert np.isnan(line[2]).all()
    assert np.isnan(line).sum() == 2

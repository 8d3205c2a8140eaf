"""Paths through a maze, drawn on its plan: episodes of the data, and evaluation episodes of a trained policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard import datasets
from hoard.envs.layout import MazeLayout, goal_of, layout_of
from hoard.records import media
from hoard.records.errors import BadInput
from hoard.records.files import write_atomic
from hoard.runners.policy import Policy, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("png", "svg", "pdf")
DPI = 130
WALL, GOAL = "#59606b", "#029e73"
# From best to worst. Colours of seaborn's "colorblind" palette; line styles tell the same without colour.
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#0173b2", "linestyle": "-"},
    {"color": "#8f5a83", "linestyle": "-."},
    {"color": "#d55e00", "linestyle": (0, (3, 1.5))},
)


@dataclass(frozen=True)
class Walk:
    """One episode's positions (T + 1, 2), its return, whether it succeeded and where its goal was, if that is known."""

    positions: np.ndarray
    total: float
    success: bool | None = None
    goal: np.ndarray | None = None


@dataclass(frozen=True)
class Panel:
    """Walks under one title."""

    title: str
    walks: list[Walk]


def draw(
    out: Path,
    policy: Policy | None = None,
    data: str | None = None,
    episodes: int = 20,
    sample: int = 40,
    seed: int = 0,
) -> tuple[Path, str]:
    """Draw `sample` episodes of a dataset and `episodes` evaluation episodes of a policy; the file and its alt text.

    Either may be absent. The policy's episodes are those of `hoard evaluate` with the same number and `seed`, which
    also chooses among the data's. Raises BadInput for an environment that is no maze with a known layout, and for a
    name that does not end in .png, .svg or .pdf.
    """
    kind = out.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise BadInput(f"{out}: the name must end in .{', .'.join(KINDS)}")
    if not out.parent.is_dir():
        raise BadInput(f"{out}: there is no folder {out.parent}")
    if min(episodes, sample) < 1:
        raise BadInput(f"{sample} episodes of the data and {episodes} of the policy: must be at least 1 each")
    loaded = datasets.load(data) if data is not None else None
    spec = policy.task.env_spec if policy is not None else loaded.env_spec if loaded is not None else None
    name = policy.task.dataset if policy is not None else str(data)
    layout = _known_layout(spec, name)
    panels: list[Panel] = []
    rows: list[dict[str, Any]] = []
    if loaded is not None:
        panels.append(_of_data(loaded, layout, sample, seed))
    if policy is not None:
        walks, rows = _of_policy(policy, episodes, seed)
        panels.append(Panel(f"{policy.algo}, {episodes} evaluation episode{'s' * (episodes != 1)}", walks))
    alt = f"Paths through the maze of {name}. " + " ".join(f"{panel.title}: {_outcome(panel)}." for panel in panels)
    assert spec is not None
    record = media.record_of(alt, policy.algo if policy else "", name, spec.id, seed, rows)
    drawn = figure(layout, panels, name)
    described = {} if kind == "pdf" else {media.PNG_FIELD: record if kind == "png" else alt}
    write_atomic(out, lambda scratch: drawn.savefig(scratch, format=kind, dpi=DPI, metadata=described))
    return out, alt


def figure(layout: MazeLayout, panels: Sequence[Panel], title: str) -> Figure:
    """The panels side by side on the same plan."""
    import matplotlib
    import seaborn as sns
    from matplotlib.figure import Figure

    left, right, bottom, top = _window(layout)
    width = 4.6
    height = width * (top - bottom) / (right - left)
    with matplotlib.rc_context(sns.axes_style("white") | {"font.size": 10, "axes.titlesize": 10.5}):
        drawn = Figure(figsize=(width * len(panels) + 0.3, height + 1.5), layout="constrained")
        drawn.suptitle(title, fontsize=11)
        for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels):
            _draw_plan(axes, layout)
            _draw_panel(axes, layout, panel)
    return drawn


def is_maze(spec: EnvSpec | None) -> bool:
    """Whether an environment is a maze with a known layout."""
    return spec is not None and layout_of(spec) is not None


# --- walks ---


def _known_layout(spec: EnvSpec | None, name: str) -> MazeLayout:
    layout = layout_of(spec) if spec is not None else None
    if layout is None:
        where = f"its environment {spec.id} is no maze" if spec is not None else "it has no environment"
        raise BadInput(f"{name}: {where} whose walls are known here, so there are no paths to draw")
    return layout


def _of_data(data: datasets.Dataset, layout: MazeLayout, sample: int, seed: int) -> Panel:
    chosen = np.sort(np.random.default_rng(seed).permutation(data.num_episodes)[:sample])
    walks = []
    for number in chosen.tolist():
        rows = slice(int(data.starts[number]), int(data.starts[number + 1]))
        positions = np.concatenate([data.obs[rows, :2], data.next_obs[rows][-1:, :2]])
        goal = data.obs[rows.start, 2:4] if layout.observed_goal else None
        walks.append(Walk(positions, float(data.returns[number]), None, goal))
    return Panel(f"Data, {len(walks)} of {data.num_episodes:,} episodes", walks)


def _of_policy(policy: Policy, episodes: int, seed: int) -> tuple[list[Walk], list[dict[str, Any]]]:
    positions: list[list[np.ndarray]] = [[] for _ in range(episodes)]
    goals: list[np.ndarray] = []

    def witness(number: int, env: gym.Env, action: np.ndarray | None, obs: np.ndarray) -> None:
        if action is None:
            goals.append(goal_of(env))
        positions[number].append(obs[:2].copy())

    rows = score(policy, episodes, seed, witness)
    return [
        Walk(np.array(own), float(row["return"]), row["success"], goal)
        for own, row, goal in zip(positions, rows, goals)
    ], rows


def _groups(walks: Sequence[Walk]) -> list[tuple[str, list[Walk], dict[str, Any]]]:
    """Walks that look alike, best first: by success where it is known of all, else the thirds by return."""
    if all(walk.success is not None for walk in walks):
        split = [("goal reached", [walk for walk in walks if walk.success], LOOKS[0]),
                 ("goal not reached", [walk for walk in walks if not walk.success], LOOKS[2])]  # fmt: skip
        return [group for group in split if group[1]]
    totals = np.array([walk.total for walk in walks])
    low, high = np.quantile(totals, [1 / 3, 2 / 3])
    parts = (totals > high, (totals > low) & (totals <= high), totals <= low)
    out = []
    for part, look in zip(parts, LOOKS if totals.min() < totals.max() else LOOKS[::-1]):
        own = [walk for walk, inside in zip(walks, part) if inside]
        if own:
            ends = [f"{end:.3g}" for end in (totals[part].min(), totals[part].max())]
            out.append((f"return {' to '.join(dict.fromkeys(ends))}", own, look))
    return out


def _outcome(panel: Panel) -> str:
    """A panel in words."""
    words = [f"{name} ({len(own)})" for name, own, _ in _groups(panel.walks)]
    return f"{', '.join(words)}; mean return {np.mean([walk.total for walk in panel.walks]):.3g}"


# --- drawing ---


def _draw_plan(axes: Axes, layout: MazeLayout) -> None:
    from matplotlib.patches import Rectangle

    left, right, bottom, top = _window(layout)
    for x, y in layout.walls:
        corner = (float(x) - layout.cell / 2, float(y) - layout.cell / 2)
        axes.add_patch(Rectangle(corner, layout.cell, layout.cell, facecolor=WALL, edgecolor=WALL, linewidth=0.6))
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _window(layout: MazeLayout) -> tuple[float, float, float, float]:
    """What is drawn of the plan: of the outer walls the inner part alone."""
    left, right, bottom, top = layout.box
    cut = 0.7 * layout.cell
    return left + cut, right - cut, bottom + cut, top - cut


def _draw_panel(axes: Axes, layout: MazeLayout, panel: Panel) -> None:
    from matplotlib.lines import Line2D

    groups = _groups(panel.walks)
    alpha = float(np.clip(14 / len(panel.walks), 0.5, 0.85))
    for place, (_, walks, look) in enumerate(groups):
        order = 4 - place  # the best on top
        for walk in walks:
            line = _unbroken(walk.positions, layout.cell)
            axes.plot(line[:, 0], line[:, 1], **look, linewidth=1.2, alpha=alpha, zorder=order)
            x, y = walk.positions[0]
            axes.plot(x, y, "o", ms=4.5, mfc="white", mec=look["color"], mew=1.1, zorder=5)
    _draw_goals(axes, layout, panel)
    handles = [Line2D([], [], **look, linewidth=1.8, label=f"{name} ({len(walks)})") for name, walks, look in groups]
    handles.append(Line2D([], [], marker="o", linestyle="", mfc="white", mec="#333333", ms=5, label="start"))
    handles.append(Line2D([], [], marker="*", linestyle="", mfc=GOAL, mec="#111111", mew=0.6, ms=10, label="goal"))
    mean = np.mean([walk.total for walk in panel.walks])
    axes.set_title(f"{panel.title}\nmean return {mean:.3g}")
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2, frameon=False, fontsize=9)


def _draw_goals(axes: Axes, layout: MazeLayout, panel: Panel) -> None:
    from matplotlib.patches import Circle

    known = [walk.goal for walk in panel.walks if walk.goal is not None]
    goals = np.unique(np.array(known), axis=0) if known else layout.goals
    if len(goals) == 1:
        x, y = map(float, goals[0])
        axes.add_patch(Circle((x, y), layout.radius, facecolor=GOAL, alpha=0.18, linewidth=0, zorder=1))
    size = 11 if len(goals) == 1 else 7
    axes.plot(goals[:, 0], goals[:, 1], "*", ms=size, mfc=GOAL, mec="#111111", mew=0.6, linestyle="", zorder=6)


def _unbroken(positions: np.ndarray, cell: float) -> np.ndarray:
    """The positions with a gap wherever a step leaps over a cell: a teleport is no way walked."""
    leaps = np.flatnonzero(np.linalg.norm(np.diff(positions, axis=0), axis=1) > cell) + 1
    return np.insert(positions.astype(np.float64), leaps, np.nan, axis=0)

"""Learning curves of compiled runs over those of eager ones: `python experiments/compiled/overlay.py`.

Reads this folder's archives (`offline` and `online`, compiled, and `eager` for CQL) and the eager runs of
`experiments/offline` and `experiments/hybrid`: the same dataset, options and seeds. Draws `figures/overlay.png` and
prints the README's table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

HERE = Path(__file__).parent
DATASET = "hoard/pendulum/mixed-v0"
COLUMNS = ["method", "seed", "step", "score"]
ONLINE = ("drbc", "moorl", "rlpd", "sac")
EAGER, COMPILED = "#4477AA", "#EE6677"


def curves(folder: Path) -> pd.DataFrame:
    """Mean score of each evaluation on DATASET: columns method, seed, step.

    Steps are updates, of ONLINE methods environment steps, without what was evaluated before the first of them.
    """
    episodes = pd.read_parquet(folder / "episodes.parquet")
    episodes = episodes[(episodes["dataset"] == DATASET) & (episodes["variant"] == "")]
    online = episodes["method"].isin(ONLINE)
    episodes["step"] = episodes["env_step"].where(online, episodes["update"])
    episodes = episodes[~online | (episodes["env_step"] > 0)]
    return episodes.groupby(["method", "seed", "step"], as_index=False)["score"].mean()[COLUMNS]


def both() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Eager and compiled curves of the methods and seeds that have both."""
    compiled = pd.concat([curves(HERE / "offline"), curves(HERE / "online")])
    own = curves(HERE / "eager")
    offline, hybrid = curves(HERE.parent / "offline"), curves(HERE.parent / "hybrid")
    # The archive `offline` holds CQL compiled.
    eager = pd.concat([own, offline[~offline["method"].isin(own["method"])], hybrid[hybrid["method"].isin(ONLINE)]])
    keys = ["method", "seed"]
    shared = compiled[keys].drop_duplicates().merge(eager[keys].drop_duplicates())
    return eager.merge(shared), compiled.merge(shared)


def table(eager: pd.DataFrame, compiled: pd.DataFrame) -> str:
    """A row for each method: last scores, seed by seed, and their means."""
    lines = ["| method | eager | compiled | mean eager | mean compiled |", "|---|---|---|--:|--:|"]
    for method in sorted(set(compiled["method"])):
        last = []
        for runs in (eager, compiled):
            own = runs[runs["method"] == method]
            last.append(own[own["step"] == own["step"].max()].sort_values("seed")["score"])
        seeds = [", ".join(f"{score:.1f}" for score in scores) for scores in last]
        lines.append(f"| {method} | {' | '.join(seeds)} | {last[0].mean():.1f} | {last[1].mean():.1f} |")
    return "\n".join(lines)


def figure(eager: pd.DataFrame, compiled: pd.DataFrame) -> Figure:
    """A panel for each method: every seed's curve, eager and compiled."""
    methods = sorted(set(compiled["method"]))
    rows = -(-len(methods) // 5)
    drawn = Figure(figsize=(14, 2.3 * rows), layout="constrained")
    panels = list(drawn.subplots(rows, 5, squeeze=False).flat)
    for axes, method in zip(panels, methods):
        for runs, color, style in ((eager, EAGER, "-"), (compiled, COMPILED, "--")):
            for _, run in runs[runs["method"] == method].groupby("seed"):
                axes.plot(run["step"], run["score"], color=color, linestyle=style, linewidth=1.4)
        axes.set_title(method, fontsize=9)
        axes.set_ylim(-60, 112)
        axes.tick_params(labelsize=7)
    for axes in panels[len(methods) :]:
        axes.set_visible(False)
    drawn.supylabel("score", fontsize=9)
    drawn.supxlabel(f"updates; environment steps for {', '.join(ONLINE)}", fontsize=9)
    drawn.legend(
        handles=[
            drawn.axes[0].plot([], [], color=EAGER, label="eager")[0],
            drawn.axes[0].plot([], [], color=COMPILED, linestyle="--", label="compiled")[0],
        ],
        loc="outside upper right", ncols=2, fontsize=8,
    )  # fmt: skip
    return drawn


def main() -> None:
    eager, compiled = both()
    (HERE / "figures").mkdir(exist_ok=True)
    figure(eager, compiled).savefig(HERE / "figures" / "overlay.png", dpi=130)
    sys.stdout.write(table(eager, compiled) + "\n")


if __name__ == "__main__":
    main()

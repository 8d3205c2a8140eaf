"""Data cards: what a dataset holds, as numbers, text and a figure.

Quality and coverage follow "A Dataset Perspective on Offline Reinforcement Learning" (Schweighofer et al., 2022; read
in the authors' code, github kschweig/OfflineRL):

- trajectory quality ``TQ = (mean return - random) / (expert - random)``, a hundredth of the score of the mean return.
  The authors put the best return of an online run in the expert's place; here it is the dataset's expert reference;
- state-action coverage ``SACo = u(D) / u(reference)``, u being the number of distinct state-action pairs. The authors'
  reference is the replay data of an online run; here it is whichever dataset the caller names.

Numbers that are not discrete have to be cut into cells before they can be counted: every column into `bins` cells of
equal width between its least and its greatest value (in both datasets, where two are compared). The authors used about
100 cells. Here it is 10, because beyond two or three columns a finer grid finds every pair distinct and says nothing;
a share of distinct pairs near 1 is the sign of that. Counts depend on the size of a dataset: compare equal sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.discrete import OneHot, brief, left_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 10  # cells per column when state-action pairs are counted
SATURATION = 1e-4  # an action this near to a bound, as a share of the range, counts as saturated
_HISTOGRAM = 12  # bars
_WIDTH = 40  # characters of the longest bar


def describe(
    data: Dataset, metadata: dict[str, Any] | None = None, reference: Dataset | None = None, bins: int = BINS
) -> dict[str, Any]:
    """The card of a dataset: plain numbers, strings, lists and dicts, ready for JSON; unknown values are None.

    `metadata` is what `hoard.datasets.metadata_of` gives for a Minari set, `reference` the dataset whose coverage SACo
    refers to. Raises DatasetError where the two do not have the same columns or `bins` is not in 1..255.
    """
    if not 1 <= bins <= 255:
        raise DatasetError(f"{data.id}: bins must lie in 1..255, got {bins}")
    metadata = metadata or {}
    space = metadata.get("observation_space")
    known = data.ref_min is not None and data.ref_max is not None
    quality = float(data.normalized_score(data.returns.mean())) / 100 if known else None
    both = data.terminated & data.truncated
    last = data.starts[1:] - 1
    return {
        "id": data.id,
        "source": data.source,
        "sha256": data.content_hash,
        "description": metadata.get("description"),
        "algorithm": metadata.get("algorithm_name"),
        "transitions": len(data),
        "episodes": data.num_episodes,
        "observation": {
            "columns": data.obs_dim,
            "space": brief(space) if space is not None else None,
            "left_out": left_out(space) if space is not None else [],
            "constant_columns": np.flatnonzero(np.ptp(data.observations, axis=0) == 0).tolist(),
        },
        "action": {"columns": data.action_dim, "space": _space_text(data), "saturation": _saturation(data)},
        "reward": _summary(data.reward) | {"nonzero_share": float(np.mean(data.reward != 0))},
        "lengths": _summary(data.lengths) | {"histogram": _histogram(data.lengths)},
        "returns": _summary(data.returns) | {"histogram": _histogram(data.returns)},
        "ends": {
            "terminated": int(data.terminated.sum()),
            "truncated": int(data.truncated.sum()),
            "both": int(both.sum()),
            "neither": int((~data.terminated[last] & ~data.truncated[last]).sum()),
        },
        "notes": list(data.notes),
        "references": {"random": data.ref_min, "expert": data.ref_max},
        "trajectory_quality": quality,
        "coverage": _coverage(data, reference, bins),
        "evaluation": {"env": data.env_spec.id, "limit": data.env_spec.max_episode_steps} if data.env_spec else None,
    }


def as_text(card: dict[str, Any]) -> str:
    """The card for reading in a terminal."""
    returns, lengths, reward = card["returns"], card["lengths"], card["reward"]
    action, evaluation = card["action"], card["evaluation"]
    lines = {
        "transitions": f"{card['transitions']:,} in {card['episodes']:,} episodes",
        "lengths": f"{lengths['min']:.0f} .. {lengths['max']:.0f}, mean {lengths['mean']:.1f}",
        "returns": f"{returns['min']:.4g} .. {returns['max']:.4g}, mean {returns['mean']:.4g}, "
        f"median {returns['median']:.4g}, standard deviation {returns['std']:.4g}",
        "rewards": f"{reward['min']:.4g} .. {reward['max']:.4g}, {100 * reward['nonzero_share']:.1f} % are not 0",
        "quality": _quality_text(card),
        "ends": _ends_text(card["ends"]),
        "observation": _observation_text(card["observation"]),
        "action": f"{action['columns']} columns, {action['space']}",
        "saturation": _saturation_text(action["saturation"]),
        **_coverage_texts(card["coverage"]),
        "evaluation": f"{evaluation['env']}, {evaluation['limit']} steps" if evaluation else "no known environment",
        "algorithm": card["algorithm"] or "not recorded",
        "sha256": card["sha256"],
        "read from": card["source"],
    }
    if card["notes"]:
        lines["notes"] = "; ".join(card["notes"])
    text = [card["id"], *(f"  {name:12} {value}" for name, value in lines.items())]
    for name, unit in (("returns", "episodes by return"), ("lengths", "episodes by length")):
        text += ["", f"  {unit}", *_bars(card[name]["histogram"])]
    return "\n".join(text)


def figure(data: Dataset, card: dict[str, Any]) -> Figure:
    """Four panels: returns, episode lengths, actions, and where the data lies in two observation columns."""
    import matplotlib
    import seaborn as sns
    from matplotlib.figure import Figure

    with matplotlib.rc_context(sns.axes_style("whitegrid") | {"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(10, 6.6), layout="constrained")
        axes = figure.subplots(2, 2)
        color = sns.color_palette("colorblind")
        figure.suptitle(f"{data.id}: {len(data):,} steps in {data.num_episodes:,} episodes", fontsize=12)
        sns.histplot(x=data.returns, bins=40, ax=axes[0, 0], color=color[0])
        axes[0, 0].set(title="returns", xlabel="undiscounted return", ylabel="episodes")
        for place, name in ((data.ref_min, "random"), (data.ref_max, "expert")):
            if place is not None:
                axes[0, 0].axvline(place, color="#555555", linewidth=1, linestyle="--")
                where = axes[0, 0].get_xaxis_transform()
                axes[0, 0].text(place, 0.98, f" {name}", transform=where, rotation=90, va="top", fontsize=8)
        sns.histplot(x=data.lengths, bins=40, ax=axes[0, 1], color=color[1])
        axes[0, 1].set(title="episode lengths", xlabel="steps", ylabel="episodes")
        _draw_actions(axes[1, 0], data, color)
        _draw_occupancy(figure, axes[1, 1], data, card["observation"]["constant_columns"])
    return figure


# --- numbers ---


def _space_text(data: Dataset) -> str:
    space = data.action_space
    return (
        f"one-hot of {brief(space.original)}"
        if isinstance(space, OneHot)
        else f"in [{space.low.min():g}, {space.high.max():g}]"
    )


def _summary(values: np.ndarray) -> dict[str, float]:
    low, lower, median, upper, high = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
    mean, std = float(np.mean(values, dtype=np.float64)), float(np.std(values, dtype=np.float64))
    return {"min": low, "p25": lower, "median": median, "p75": upper, "max": high, "mean": mean, "std": std}


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    low, high = float(values.min()), float(values.max())
    bars = _HISTOGRAM if high - low > 1e-9 * max(abs(low), abs(high), 1e-300) else 1
    if bars == 1:  # all the same: NumPy would invent a range around it
        return {"edges": [low, high], "counts": [len(values)]}
    counts, edges = np.histogram(values.astype(np.float64), bars)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _saturation(data: Dataset) -> dict[str, Any] | None:
    low, high = data.action_space.low, data.action_space.high
    if isinstance(data.action_space, OneHot) or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    near = SATURATION * (high - low)
    at_bound = (data.action <= low + near) | (data.action >= high - near)
    return {
        "entries": float(at_bound.mean()),
        "steps": float(at_bound.any(axis=1).mean()),
        "columns": at_bound.mean(axis=0).tolist(),
    }


def _coverage(data: Dataset, reference: Dataset | None, bins: int) -> dict[str, Any]:
    both = [data] if reference is None else [data, reference]
    if len({(each.obs_dim, each.action_dim) for each in both}) > 1:
        raise DatasetError(
            f"{data.id} has {data.obs_dim} + {data.action_dim} observation and action columns, {both[1].id} has "
            f"{both[1].obs_dim} + {both[1].action_dim}: their coverage cannot be compared"
        )
    low = [np.min([getattr(each, name).min(axis=0) for each in both], axis=0) for name in ("obs", "action")]
    high = [np.max([getattr(each, name).max(axis=0) for each in both], axis=0) for name in ("obs", "action")]
    out: dict[str, Any] = {"bins": bins, "reference": None, "saco": None}
    counts = []
    for each in both:
        states = _cells(each.obs, low[0], high[0], bins)
        counts.append((_distinct(states), _distinct(np.hstack([states, _cells(each.action, low[1], high[1], bins)]))))
    out["states"], out["state_actions"] = counts[0]
    out["share"] = out["state_actions"] / len(data)
    if reference is not None:
        out["reference"] = {"id": reference.id, "state_actions": counts[1][1], "transitions": len(reference)}
        out["saco"] = out["state_actions"] / counts[1][1]
    return out


def _cells(values: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int) -> np.ndarray:
    """Cell of every entry, 0..bins-1, as bytes."""
    low, width = low.astype(np.float64), high.astype(np.float64) - low
    cells = np.empty(values.shape, np.uint8)
    for j in range(values.shape[1]):  # column by column: no second copy of the data in float64
        share = (values[:, j] - low[j]) / (width[j] or 1.0)
        cells[:, j] = np.clip(np.floor(share * bins), 0, bins - 1)
    return cells


def _distinct(rows: np.ndarray) -> int:
    """Number of distinct rows of bytes."""
    rows = np.ascontiguousarray(rows)
    return len(np.unique(rows.view(np.dtype((np.void, rows.shape[1])))))


# --- words ---


def _quality_text(card: dict[str, Any]) -> str:
    if card["trajectory_quality"] is None:
        return "no reference returns, hence no score"
    low, high = card["references"]["random"], card["references"]["expert"]
    return f"TQ {card['trajectory_quality']:.3f}: the mean return between random {low:.4g} and expert {high:.4g}"


def _ends_text(ends: dict[str, int]) -> str:
    text = f"{ends['terminated']:,} terminated, {ends['truncated']:,} truncated"
    if ends["both"]:
        text += f", {ends['both']:,} of them both"
    return text + (f", {ends['neither']:,} cut without a flag" if ends["neither"] else "")


def _observation_text(observation: dict[str, Any]) -> str:
    text = f"{observation['columns']} columns"
    if observation["space"]:
        text += f" of {observation['space']}"
    if observation["left_out"]:
        text += f"; left out: {', '.join(observation['left_out'])}"
    return text + (f"; constant: {_some(observation['constant_columns'])}" if observation["constant_columns"] else "")


def _saturation_text(saturation: dict[str, Any] | None) -> str:
    if saturation is None:
        return "does not apply: the actions have no finite bounds, or are one-hot"
    return (
        f"{100 * saturation['entries']:.1f} % of the action entries lie at a bound, "
        f"{100 * saturation['steps']:.1f} % of the steps have one"
    )


def _coverage_texts(coverage: dict[str, Any]) -> dict[str, str]:
    versus, saco = coverage["reference"], "needs a reference dataset (--reference ID)"
    if versus:
        saco = (
            f"{coverage['saco']:.3f}, relative to {versus['state_actions']:,} pairs in {versus['transitions']:,} steps "
        )
        saco += f"of {versus['id']}"
    return {
        "coverage": f"{coverage['state_actions']:,} distinct state-action pairs ({100 * coverage['share']:.1f} % of "
        f"the steps), {coverage['states']:,} distinct states; {coverage['bins']} cells per column",
        "SACo": saco,
    }


# --- drawing ---


def _bars(histogram: dict[str, list[float]]) -> list[str]:
    edges, counts = histogram["edges"], histogram["counts"]
    top = max(counts)
    lines = []
    for low, high, count in zip(edges, edges[1:], counts):
        bar = "#" * max(round(_WIDTH * count / top), 1 if count else 0)
        lines.append(f"  {low:>10.4g} .. {high:<10.4g} {bar:{_WIDTH}} {count:>8,}".rstrip())
    return lines


def _some(numbers: list[int], most: int = 8) -> str:
    return ", ".join(map(str, numbers[:most])) + (f", ... ({len(numbers)} in all)" if len(numbers) > most else "")


def _draw_actions(axes: Axes, data: Dataset, colors: Any) -> None:
    if isinstance(data.action_space, OneHot):
        axes.bar(range(data.action_dim), data.action.mean(axis=0), color=colors[2])
        axes.set(title=f"actions, {_space_text(data)}", xlabel="column", ylabel="share of the steps")
        return
    shown = min(data.action_dim, 6)
    for j in range(shown):
        counts, edges = np.histogram(data.action[:, j], 40)
        axes.stairs(counts / len(data), edges, color=colors[j], label=str(j), linewidth=1.4)
    more = f" (first {shown} of {data.action_dim} columns)" if shown < data.action_dim else ""
    axes.set(title=f"actions{more}", xlabel="environment units", ylabel="share of the steps")
    if shown > 1:
        axes.legend(title="column", fontsize=8, ncols=2)


def _draw_occupancy(figure: Figure, axes: Axes, data: Dataset, constant: list[int]) -> None:
    """Visits over the first two columns that change: position, in the mazes."""
    varying = [j for j in range(data.obs_dim) if j not in set(constant)][:2]
    if len(varying) < 2:
        axes.text(0.5, 0.5, "fewer than two observation columns change", ha="center", transform=axes.transAxes)
        axes.set(title="where the states are", xticks=[], yticks=[])
        return
    x, y = varying
    *_, image = axes.hist2d(data.obs[:, x], data.obs[:, y], bins=60, cmin=1, norm="log", cmap="viridis")
    figure.colorbar(image, ax=axes, label="steps")
    axes.set(title="where the states are", xlabel=f"observation column {x}", ylabel=f"observation column {y}")

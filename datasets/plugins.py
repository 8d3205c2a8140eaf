"""What can be done to a dataset before it is trained on, for any algorithm file that has the option `data`.

A text names the plug-ins, applied from left to right: `top=0.1`, `weight=return`, `top=0.5,hubl=rank:0.1`. `all` names
none: the dataset as it is.

- `top=F`: keep the best share F of the episodes by return (`Dataset.top_episodes`).
- `weight=return[:T]`: draw transitions with probability proportional to exp(g / T), where g is the return of their
  episode scaled to [0, 1] over the dataset. `weight=advantage[:T]` takes the return less a linear prediction of it from
  the first observation instead. T = 0.1 unless given. Hong, Agrawal, Tachet des Combes, Laroche 2023, "Harnessing Mixed
  Offline Reinforcement Learning Datasets via Trajectory Weighting" (arXiv 2306.13085), and its released code.
- `hubl=constant:A` or `hubl=rank:A`: blend Monte-Carlo returns into bootstrapped values, r + discount * lambda * h(s')
  and discount * (1 - lambda), where h is the discounted return to go. lambda is A, or A * (share of the episodes whose
  return is not higher). Geng, Pacchiano, Kolobov, Cheng 2024, "Improving Offline RL by Blending Heuristics"
  (arXiv 2306.00321); that `rank` is the paper's labelling is from memory. The return of an episode that was cut off
  counts what was collected, so h is too small near the cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hoard.datasets.dataset import Dataset, DatasetError
from hoard.records.errors import BadInput

Plugin = Callable[[Dataset], Dataset]


def parse(text: str) -> list[tuple[str, str, Plugin]]:
    """(name, argument, function) of every plug-in in `text`. Raises BadInput for what is none or stands there twice."""
    out: list[tuple[str, str, Plugin]] = []
    for part in [] if text == "all" else text.split(","):
        name, _, argument = part.strip().partition("=")
        if name not in _PLUGINS:
            raise BadInput(f"data {text}: there is no plug-in '{name}'; there are {_FORMS}; all is none of them")
        if name in [known for known, *_ in out]:
            raise BadInput(f"data {text}: '{name}' stands there twice")
        try:
            out.append((name, argument, _PLUGINS[name](argument)))
        except ValueError:
            raise BadInput(f"data {text}: {name}={argument}: write {_FORM_OF[name]}") from None
    return out


def apply(dataset: Dataset, text: str) -> Dataset:
    """`dataset` with the plug-ins of `text` applied. Raises BadInput for a text that is none, DatasetError for data."""
    for _, _, plugin in parse(text):
        dataset = plugin(dataset)
    return dataset


def _top(argument: str) -> Plugin:
    share = _number(argument, lambda x: 0 < x <= 1)
    return lambda dataset: dataset.top_episodes(share)


def _weight(argument: str) -> Plugin:
    kind, _, given = argument.partition(":")
    temperature = _number(given or "0.1", lambda x: x > 0)
    if kind not in ("return", "advantage"):
        raise ValueError(kind)

    def weighted(dataset: Dataset) -> Dataset:
        gain = dataset.returns
        if kind == "advantage":
            first = dataset.observations[dataset.rows[dataset.starts[:-1]]].astype(np.float64)
            design = np.column_stack([first, np.ones(len(first))])
            gain = gain - design @ np.linalg.lstsq(design, gain, rcond=None)[0]
        span = gain.max() - gain.min()
        if span <= 1e-9 * np.abs(dataset.returns).max():  # also what rounding leaves of a perfect prediction
            raise DatasetError(
                f"{dataset.id}: data weight={argument}: every episode has the same {kind}, nothing to weigh"
            )
        weight = np.exp((gain - gain.max()) / span / temperature)[dataset.episode_index]
        return replace(dataset, weight=weight / weight.mean())

    return weighted


def _hubl(argument: str) -> Plugin:
    kind, _, given = argument.partition(":")
    strength = _number(given, lambda x: 0 < x <= 1)
    if kind not in ("constant", "rank"):
        raise ValueError(kind)

    def blended(dataset: Dataset) -> Dataset:
        share = np.ones(dataset.num_episodes)
        if kind == "rank":
            order = np.sort(dataset.returns)
            share = np.searchsorted(order, dataset.returns, side="right") / dataset.num_episodes
        return replace(dataset, blend=strength * share[dataset.episode_index])

    return blended


def _number(text: str, allowed: Callable[[float], bool]) -> float:
    value = float(text)
    if not allowed(value) or value == float("inf"):
        raise ValueError(text)
    return value


_PLUGINS = {"top": _top, "weight": _weight, "hubl": _hubl}
_FORM_OF = {
    "top": "top=F with 0 < F <= 1",
    "weight": "weight=return, weight=advantage, or one of them with :T, T > 0",
    "hubl": "hubl=constant:A or hubl=rank:A with 0 < A <= 1",
}
_FORMS = "; ".join(_FORM_OF.values())

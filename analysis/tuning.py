"""Score against tuning budget: what tuning brings after k settings, or after n evaluation episodes.

Two questions, two curves. `expected_best`: k settings are tried at random and the one with the best score is kept; how
high is its score (Dodge et al., Show your work, EMNLP 2019, here without replacement)? The score that selects is the
score reported, so the curve is that of an oracle. `bandit`: a user has the policies of all settings and a budget of
evaluation episodes, picks policies to try by UCB, and takes the one that looks best; how good is that policy really
(Jackson et al., A clean slate for offline RL, 2025)? A method that needs luck in its settings falls behind in both.

`python -m hoard.analysis.tuning results/tune/STUDY ...` draws both from what `hoard tune` left.
"""

from __future__ import annotations

import argparse
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.special

from hoard.analysis import plots, results, stats, tables
from hoard.analysis.results import Results, ResultsError
from hoard.records.folder import EPISODES

UCB = 2.0  # exploration coefficient of Jackson et al.
REPETITIONS = 1_000


def expected_best(scores: np.ndarray) -> np.ndarray:
    """Expected maximum of k scores drawn without replacement, for k = 1 to n, along the last axis.

    In closed form: the i-th smallest of n is the greatest of k with probability C(i - 1, k - 1) / C(n, k).
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=-1)
    return ordered @ _greatest(ordered.shape[-1]).T


def _greatest(n: int) -> np.ndarray:
    """Probability that the i-th smallest (columns) is the greatest of k (rows)."""
    i, k = np.arange(1, n + 1)[None, :], np.arange(1, n + 1)[:, None]
    logs = scipy.special.gammaln

    def choose(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        inside = np.maximum(top - bottom, 0)
        return logs(top + 1) - logs(bottom + 1) - logs(inside + 1)

    share = np.exp(choose(i - 1, k - 1) - choose(np.full_like(i, n), k))
    return np.where(i >= k, share, 0.0)


def expected_best_curve(
    scores: np.ndarray,
    rng: np.random.Generator,
    *,
    level: float = stats.LEVEL,
    resamples: int = stats.MIN_RESAMPLES,
) -> pd.DataFrame:
    """Expected best of k of n settings, with its percentile-bootstrap interval over settings.

    `scores`: one a setting. Columns point, low, high, indexed by k. The interval has the bias of every bootstrap of a
    maximum: near k = n it cannot rise above the best setting seen. Raises ValueError without any finite score.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError("expected best of k needs one finite score a setting")
    index = pd.RangeIndex(1, len(scores) + 1, name="settings")
    point = expected_best(scores)
    if len(scores) < 2:
        return pd.DataFrame({"point": point, "low": np.nan, "high": np.nan}, index=index)
    draws = expected_best(scores[rng.integers(len(scores), size=(resamples, len(scores)))])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return pd.DataFrame({"point": point, "low": low, "high": high}, index=index)


def bandit(
    returns: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    pulls: int = 100,
    policies: int | None = None,
    repetitions: int = REPETITIONS,
    coefficient: float = UCB,
    level: float = stats.LEVEL,
) -> pd.DataFrame:
    """True mean score of the policy that looks best to a UCB bandit, after 1 to `pulls` evaluation episodes.

    `returns`: the scores of the evaluation episodes of each policy, whose mean is taken for its true score; a pull
    draws one of them. Each of the `repetitions` starts from `policies` of them at random (all by default), tries each
    once, then follows mean + sqrt(coefficient * log(pulls so far) / pulls of the policy) on scores that are scaled
    to [0, 1] by their range. Columns point, low, high (quantiles over the repetitions), indexed by pulls.
    Raises ValueError if a policy has no episode, or there are fewer than `policies`.
    """
    episodes = [np.asarray(values, dtype=np.float64) for values in returns]
    count = len(episodes) if policies is None else policies
    if not episodes or min(len(values) for values in episodes) == 0:
        raise ValueError("the bandit needs at least one policy, and one episode of each")
    if not 1 <= count <= len(episodes):
        raise ValueError(f"{count} policies cannot be drawn from {len(episodes)}")
    every = np.concatenate(episodes)
    low, width = every.min(), np.ptp(every) or 1.0
    truth = np.array([values.mean() for values in episodes])
    sizes = np.array([len(values) for values in episodes])
    padded = np.zeros((len(episodes), sizes.max()))
    for row, values in zip(padded, episodes):
        row[: len(values)] = (values - low) / width
    chosen = np.argsort(rng.random((repetitions, len(episodes))), axis=1)[:, :count]
    tried, total = np.zeros((repetitions, count)), np.zeros((repetitions, count))
    rows, found = np.arange(repetitions), np.empty((pulls, repetitions))
    for pull in range(pulls):
        if pull < count:
            arm = np.full(repetitions, pull)
        else:
            arm = np.argmax(total / tried + np.sqrt(coefficient * np.log(pull) / tried), axis=1)
        policy = chosen[rows, arm]
        total[rows, arm] += padded[policy, rng.integers(sizes[policy])]
        tried[rows, arm] += 1
        seen = np.where(tried > 0, total / np.maximum(tried, 1), -np.inf)
        found[pull] = truth[chosen[rows, np.argmax(seen, axis=1)]]
    ends = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=1)
    index = pd.RangeIndex(1, pulls + 1, name="episodes")
    return pd.DataFrame({"point": found.mean(axis=1), "low": ends[0], "high": ends[1]}, index=index)


def settings(loaded: Results, metric: str = "score") -> pd.DataFrame:
    """One row per algorithm file, dataset and setting that was tried: its methods' last scores, mean over seeds.

    Columns algo, dataset, setting (the differences from the defaults), seeds, value. A method of a suite is a setting,
    so is each set of options among runs in a folder, as a tuning study leaves them.
    """
    measure, values = tables.measures(loaded, metric), tables.seed_values(loaded)
    keys = loaded.cells[["algo", "method", "dataset", "seed"]].assign(
        setting=[tables.setting_text(overrides) for overrides in loaded.cells["overrides"]]
    )
    values = values.merge(keys, on=["method", "dataset", "seed"])
    rows = []
    for (algo, dataset, setting), own in values.groupby(["algo", "dataset", "setting"], sort=False):
        value = own[measure[str(dataset)]].mean()
        rows.append({"algo": algo, "dataset": dataset, "setting": setting, "seeds": len(own), "value": value})
    return pd.DataFrame(rows, columns=["algo", "dataset", "setting", "seeds", "value"])


# --- studies of `hoard tune` ---


@dataclass(frozen=True)
class Study:
    """What a study left: its trials, and their evaluation episodes."""

    name: str
    algo: str
    trials: pd.DataFrame  # trials.csv: one row a trial
    episodes: pd.DataFrame  # of the evaluations of all trials: columns trial, dataset, seed, and those of a run

    @property
    def complete(self) -> pd.DataFrame:
        """The trials that came to an end with a finite value."""
        return self.trials[(self.trials["ended"] == "complete") & np.isfinite(self.trials["value"])]

    @property
    def values(self) -> np.ndarray:
        """Of complete trials, and of diverged ones, which count as the worst of those."""
        found = self.complete["value"].to_numpy()
        return np.append(found, np.full(self.ended.get("diverged", 0), found.min()))

    @property
    def ended(self) -> dict[str, int]:
        """How many trials ended how."""
        return self.trials["ended"].value_counts().to_dict()


def read_study(folder: str | Path) -> Study:
    """Read `trials.csv` and `episodes.parquet` of a study's folder.

    Raises ResultsError if one of them cannot be read, or if no trial is complete.
    """
    folder = Path(folder).resolve()
    file = folder / "trials.csv"
    try:
        trials = pd.read_csv(file, dtype={"runs": str}).astype({"trial": int, "ended": str, "value": float})
        file = folder / EPISODES
        episodes = pq.ParquetFile(file).read().to_pandas()
    except (OSError, ValueError, KeyError) as error:
        raise ResultsError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
    settings_file = folder / f"{folder.name}.toml"
    algo = folder.name
    if settings_file.is_file():
        algo = Path(tomllib.loads(settings_file.read_text(encoding="utf-8"))["algo"]).stem
    study = Study(folder.name, algo, trials, episodes)
    if study.complete.empty:
        raise ResultsError(f"{folder / 'trials.csv'}: no trial is complete")
    return study


def last_episodes(study: Study, dataset: str | None = None) -> dict[int, np.ndarray]:
    """The episodes of the last evaluations of each complete trial, on one dataset or on all of them together.

    Scores, or returns where some episode has no score.
    """
    rows = study.episodes
    rows = rows[rows["final"] & (rows["variant"] == "") & ((rows["dataset"] == dataset) | (dataset is None))]
    measure = "score" if rows["score"].notna().all() else "return"
    numbers = study.complete["trial"]
    return {int(trial): rows.loc[rows["trial"] == trial, measure].to_numpy(float) for trial in numbers}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hoard.analysis.tuning", description="Draw score against tuning budget from studies."
    )
    parser.add_argument("studies", type=Path, nargs="+", metavar="STUDY", help="folder of a study: results/tune/NAME")
    parser.add_argument("--pulls", type=int, default=100, help="evaluation episodes of the bandit (default: 100)")
    parser.add_argument("--output", type=Path, help="folder for the figures (default: that of the first study)")
    options = parser.parse_args(arguments)
    try:
        studies = [read_study(folder) for folder in options.studies]
    except ResultsError as error:
        parser.exit(1, f"error: {error}\n")
    output = options.output or options.studies[0]
    best, bandits, styles = {}, {}, {}
    known = Counter(study.name for study in studies)
    for place, (study, folder) in enumerate(zip(studies, options.studies)):
        name = study.name if known[study.name] == 1 else str(folder)  # studies of one name lie in different results
        color = plots.color_of(study.algo, study.algo)
        marker = plots.MARKERS[place % len(plots.MARKERS)]
        styles[name] = {"color": color, "marker": marker, "linestyle": plots.LINE_STYLES[place % 4]}
        best[name] = expected_best_curve(study.values, np.random.default_rng(0))
        episodes = list(last_episodes(study).values())
        if all(len(one) for one in episodes):
            bandits[name] = bandit(episodes, np.random.default_rng(0), pulls=options.pulls)
        print(f"{name}: " + ", ".join(f"{count} {how}" for how, count in study.ended.items()))
        shown = sorted({k for k in (1, 2, 5, 10, 20, 40, 80) if k < len(study.values)} | {len(study.values)})
        for k, row in best[name].loc[shown].iterrows():
            print(f"  best of {k:3}: {tables.interval(row['point'], row['low'], row['high'], 1)}")
    figure = plots.budget(best, styles, "Expected best of k settings", "objective", "settings tried")
    print(results.write(output / "budget.png", plots.png(figure)))
    if bandits:
        title = "What a bandit over the policies finds"
        figure = plots.budget(bandits, styles, title, "score of the policy chosen", "evaluation episodes")
        print(results.write(output / "bandit.png", plots.png(figure)))


if __name__ == "__main__":
    main()

"""Write rliable.json: what rliable 1.2.0 says about fixed scores.

rliable is no dependency of hoard. To make the file again, in an environment of its own:

    python -m venv rliable && rliable/bin/pip install rliable==1.2.0 "pandas<3"
    rliable/bin/python tests/analysis/golden/make_rliable.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rliable import library, metrics

RESAMPLES = 20_000
THRESHOLDS = [-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0]
SHAPES = {"four divides": (8, 5), "nine datasets": (4, 9), "many": (10, 6), "odd": (5, 3), "one dataset": (12, 1)}

cases = []
for number, (name, (seeds, datasets)) in enumerate(SHAPES.items()):
    rng = np.random.default_rng(number)
    level = rng.uniform(0, 1, datasets)
    x, y = (level + 0.3 * rng.standard_normal((seeds, datasets)) + shift for shift in (0.1, 0.0))
    x[0, 0] = y[1, 0]  # a tie
    found = {
        "mean": metrics.aggregate_mean(x),
        "median": metrics.aggregate_median(x),
        "iqm": metrics.aggregate_iqm(x),
        "optimality gap": metrics.aggregate_optimality_gap(x, 1.0),
        "improvement": metrics.probability_of_improvement(x, y),
    }
    shares, _ = library.create_performance_profile({"x": x}, np.array(THRESHOLDS), reps=100)

    def every(scores):
        return np.array([
            metrics.aggregate_mean(scores), metrics.aggregate_median(scores), metrics.aggregate_iqm(scores),
            metrics.aggregate_optimality_gap(scores, 1.0),
        ])  # fmt: skip

    _, single = library.get_interval_estimates({"x": x}, every, reps=RESAMPLES)
    _, pair = library.get_interval_estimates(
        {"x,y": (x, y)}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=2_000
    )
    intervals = dict(zip(["mean", "median", "iqm", "optimality gap"], single["x"].T.tolist()))
    cases.append({
        "name": name, "x": x.tolist(), "y": y.tolist(), "points": {k: float(v) for k, v in found.items()},
        "intervals": intervals | {"improvement": pair["x,y"].T.tolist()[0]}, "profile": shares["x"].tolist(),
    })  # fmt: skip

content = {"rliable": version("rliable"), "thresholds": THRESHOLDS, "cases": cases}
Path(__file__).with_name("rliable.json").write_text(json.dumps(content, indent=1) + "\n")

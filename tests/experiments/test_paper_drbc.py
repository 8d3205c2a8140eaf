"""What demonstrations are worth: read from exact numbers of runs, counted, fitted, drawn, read again when archived."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from synthetic import script

from hoard.analysis import results

demonstrations = script(ROOT / "experiments" / "paper-drbc" / "figure.py")

CHAIN, GRID = "hoard/doublechain/expert-v0", "hoard/gridworld/expert-v0"


def leave(run, lacking, kl=None, model=None, **config):
    """Files of a run evaluated every 100 steps (5 episodes): `lacking`, of V* = 2, before the first and at each."""
    config = {
        "updates": 1, "log_every": 50, "eval_every": 100, "prior": "clone", "demonstrations": 10, "kl_weight": None,
    } | config  # fmt: skip
    (run / "config.json").write_text(json.dumps({"algo": "drbc_tabular", "config": config}))
    rows = []
    for k, (one, other) in enumerate(zip(lacking, model or lacking)):
        rows.append({"update": 1 + 5 * k, "env_step": 100 * k, "exact/optimum": 2.0, "exact/suboptimality": one})
        rows[-1] |= {"exact/model_suboptimality": other} | ({} if kl is None else {"exact/expert_kl": kl})
        rows.append({"update": 1 + 5 * k + 3, "env_step": 100 * k + 50, "learner/gap": 20.0})  # between evaluations
    pq.write_table(pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False), run / "metrics.parquet")


@pytest.fixture
def suite(sweep):
    """Two seeds: KL is 30 / N_E from 30 on; the learner needs 15 and 10 episodes with 10 demonstrations."""
    for seed in range(2):
        cell = lambda name, dataset=CHAIN, seed=seed: sweep.cell(name, dataset, seed, curve=[50.0])  # noqa: E731
        noise = 1.01 ** (2 * seed - 1)
        leave(cell("drbc_n10"), [1.5, 0.4, 1.0, 0.5 if seed == 0 else 0.4, 0.1], kl=2.0 * noise)
        leave(cell("drbc_n30"), [1.0, 0.5, 0.5, 0.5, 0.5], kl=noise, demonstrations=30)
        leave(cell("drbc_n300"), [0.2] * 5, kl=0.1 * noise, demonstrations=300)
        leave(cell("drbc_n3000"), [0.1], kl=0.01 * noise, demonstrations=3000)  # no online stage
        leave(cell("fixed_n10"), [1.5, 1.0, 0.1, 0.1, 0.1], kl=2.0 * noise, kl_weight=0.12)
        leave(cell("ucbvi"), [1.9, 1.9, 1.9, 0.1, 0.6], kl=11.0, model=[1.9, 0.1, 0.1, 0.1, 0.1], kl_weight=0.0,
              prior="uniform")  # fmt: skip
        leave(cell("drbc_n0"), [1.9, 1.9, 1.9, 1.9, 0.3], kl=11.0, prior="uniform", demonstrations=7)
        leave(cell("drbc_n10", GRID), [1.9], kl=9.0)
        cell("drbc", "hoard/pendulum/mixed-v0")  # a run of another kind
    return sweep.write()


def test_rows_are_evaluations(suite):
    rows = demonstrations.load(suite)
    one = rows[(rows.method == "drbc_n10") & (rows.dataset == CHAIN) & (rows.seed == 0)]
    assert one["episodes"].tolist() == [0, 5, 10, 15, 20]
    assert one["env_step"].tolist() == [0, 100, 200, 300, 400]
    assert one["suboptimality"].tolist() == [1.5, 0.4, 1.0, 0.5, 0.1]
    assert one["kl_weight"].isna().all()
    assert set(rows["dataset"]) == {CHAIN, GRID}
    assert set(rows.loc[rows.method.isin(["ucbvi", "drbc_n0"]), "demonstrations"]) == {0}
    assert len(rows) == 2 * (6 * 5 + 2)


def test_episodes_needed_are_those_after_which_it_stays():
    def needed(lacking, share=0.25):
        rows = pd.DataFrame({"env_step": [0, 1, 2], "episodes": [0, 7, 9], "suboptimality": lacking, "optimum": 2.0})
        return demonstrations.episodes_to(rows.sample(frac=1, random_state=0), "suboptimality", share)

    assert needed([0.5, 0.4, 0.1]) == 0
    assert needed([1.0, 0.4, 0.1]) == 7
    assert needed([0.1, 0.6, 0.1]) == 9  # it left again
    assert needed([0.1, 0.1, 0.6]) == math.inf
    assert needed([1.0, 0.4, 0.1], share=0.1) == 9


def test_summary(suite):
    table = demonstrations.summary(demonstrations.load(suite)).set_index(["dataset", "series", "N_E"]).sort_index()
    theory = table.loc[CHAIN, "DRBC, λ = ε / KL"]
    assert theory["headline"].tolist()[:3] == [15, 5, 0]
    assert math.isnan(theory["headline"].iloc[3])  # without an online stage there is nothing to count
    assert theory["headline reached"].tolist() == ["2/2", "2/2", "2/2", "0/0"]
    assert theory["KL"].tolist() == pytest.approx([2, 1, 0.1, 0.01], rel=1e-3)
    assert theory["slope"].tolist()[1:] == pytest.approx([np.log(0.5) / np.log(3), -1, -1])
    ucbvi = table.loc[CHAIN, "UCBVI", 0]
    assert (ucbvi["headline"], ucbvi["headline reached"]) == (math.inf, "0/2")
    assert (ucbvi["model"], ucbvi["model reached"]) == (5, "2/2")
    assert table.loc[CHAIN, "no demonstrations, λ = ε / KL", 0]["headline"] == 20
    assert table.loc[CHAIN, "DRBC, λ = 0.12", 10]["headline"] == 10
    assert table.loc[GRID, "DRBC, λ = ε / KL", 10]["headline reached"] == "0/0"


def test_slope_is_fitted_to_the_largest_numbers():
    counts = np.array([1, 10, 100, 1000] * 2)
    kl = np.where(counts < 100, 5.0, 300.0 / counts) * np.repeat([0.9, 1.1], 4)
    table = pd.DataFrame({"demonstrations": counts, "expert_kl": kl})
    assert demonstrations.slope(table) == pytest.approx(-1)
    assert -1 < demonstrations.slope(table, last=4) < -0.2
    assert math.isnan(demonstrations.slope(table[table["demonstrations"] == 10]))


def test_distances_are_counted_once(suite):
    table = demonstrations.runs(demonstrations.load(suite))
    shared = demonstrations.distances(table[table["dataset"] == CHAIN])
    assert sorted(shared["demonstrations"]) == [0, 0, 10, 10, 30, 30, 300, 300, 3000, 3000]


def test_figure(suite):
    rows = demonstrations.load(suite)
    figure = demonstrations.draw(rows)
    chain, grid = np.array(figure.axes).reshape(2, 3)
    assert (chain[0].get_xscale(), chain[0].get_yscale()) == ("log", "log")
    assert any("slope -1.00 from 300 to 3,000" in text.get_text() for text in chain[0].texts)
    missed = [line for line in chain[1].lines if line.get_marker() == "^" and len(line.get_xdata())]
    assert [len(line.get_xdata()) for line in missed] == [2]  # UCBVI's two seeds
    (named,) = figure.legends
    assert [text.get_text() for text in named.get_texts()] == list(dict.fromkeys(
        demonstrations.runs(rows)["series"]))  # fmt: skip
    assert [axes.axison for axes in grid] == [True, False, False]  # clones alone


def test_command_writes_the_joined_file_and_the_figure_and_reads_it_again(suite, tmp_path, capsys):
    demonstrations.main([str(suite)])
    assert (suite / "figures" / "demonstrations.png").stat().st_size > 5000
    assert "UCBVI" in capsys.readouterr().out
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("cells.json", "demonstrations.parquet"):
        shutil.copy(suite / name, archive)
    results.write_table(results.load(suite).episodes, archive)
    pd.testing.assert_frame_equal(demonstrations.load(archive), demonstrations.load(suite))
    demonstrations.main([str(archive)])
    assert (archive / "figures" / "demonstrations.png").read_bytes() == (
        suite / "figures" / "demonstrations.png"
    ).read_bytes()


def test_what_cannot_be_read_is_named(quick, sweep, capsys):
    with pytest.raises(SystemExit) as end:
        demonstrations.main([str(quick.folder)])
    assert end.value.code == 1
    assert "no finished run logged exact/suboptimality" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "message"),
    [({"log_every": 70}, "eval_every be a multiple of log_every"), ({"demonstrations": 0}, "give their number")],
)
def test_rows_that_would_mislead_are_refused(sweep, config, message):
    leave(sweep.cell("drbc", CHAIN, 0, curve=[50.0]), [0.1], kl=1.0, **config)
    with pytest.raises(results.ResultsError, match=message):
        demonstrations.load(sweep.write())

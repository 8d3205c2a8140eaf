"""The probe of MOORL's bursts: it changes nothing of the training, and its numbers are what they are called."""

import re
from itertools import pairwise

import pandas as pd
import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file
from synthetic import script
from torch import nn

from hoard.records.errors import BadInput

bursts = script(ROOT / "experiments" / "moorl-meta" / "bursts.py")

OPTIONS = {"online_steps": 230, "start_steps": 40, "batch_size": 16, "hidden": (8, 8), "lr": 1e-3}
OPTIONS |= {"eval_every": 200, "eval_episodes": 1, "final_eval_episodes": 1, "log_every": 50, "checkpoint_every": 200}


def test_a_run_that_is_looked_at_has_the_same_bits(tiny, tmp_path):
    kept = []
    for every in (3, 10_000):
        rows = []
        run = bursts.probed(tiny, every, tmp_path / str(every), rows, seed=1, **OPTIONS)
        kept.append(load_file(run / "policy.safetensors"))
        if every == 3:
            assert len(rows) > 50
            assert {row["source"] for row in rows} == {"offline", "online"}
            assert all(-1 <= row["cosine_critic"] <= 1 for row in rows if "cosine_critic" in row)
        else:
            assert not rows
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_losses_are_of_the_weights_before_and_after_the_burst(tiny, tmp_path):
    """With eta 1 the weights after one burst are those before the next."""
    rows = []
    seen = []
    real = bursts.Probe._losses

    def both(self, ratio):
        if ratio == 1.0:
            seen.append([bursts.flat(net).clone() for net in (self._before["critic"], self._now["critic"])])
        return real(self, ratio)

    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(bursts.Probe, "_losses", both)
        bursts.probed(tiny, 1, tmp_path, rows, seed=0, eta_meta=1.0, **OPTIONS)
    assert len(seen) == len(rows) > 100
    assert all(torch.equal(one[1], two[0]) for one, two in pairwise(seen))
    assert not any(torch.equal(*one) for one in seen)


def test_drawing_from_both_sources_is_refused(tiny, tmp_path):
    with pytest.raises(BadInput, match="sampling must be burst"):
        bursts.probed(tiny, 1, tmp_path, [], sampling="mixed", **OPTIONS)


def test_summary():
    rows = pd.DataFrame(
        {
            "source": ["offline", "offline", "online"],
            "own_before": [1.0, 1.0, 1.0],
            "own_after": [0.5, 0.7, 2.0],
            "own_meta": [0.8, 0.8, 1.5],
            "other_before": [2.0, 2.0, 2.0],
            "other_after": [2.2, 1.0, 2.0],
            "other_meta": [2.1, 1.5, 2.0],
            "cosine_critic": [0.5, -0.1, 1.0],
            "cosine_actor": [0.0, float("nan"), 1.0],
        }
    )
    found = bursts.summary(rows)
    assert found.loc["offline"].to_dict() == pytest.approx(
        {
            "bursts": 2, "own, burst": -0.4, "own, outer": -0.2, "other, burst": -0.2, "other, outer": -0.1,
            "other lower": 0.5, "cosine, critic": 0.2, "cosine, actor": 0.0,
        }
    )  # fmt: skip
    assert found.loc["online", "other lower"] == 0.0


def test_command(tiny, tmp_path, capsys):
    file = tmp_path / "bursts.csv"
    given = ["--dataset", tiny, "--seeds", "0", "--online-steps", "850", "--every", "10", "--csv", str(file)]
    bursts.main(given)
    rows = pd.read_csv(file)
    assert set(rows["source"]) == {"offline", "online"}
    told = capsys.readouterr().out
    assert re.search(r"^offline +\d", told, re.M)
    with pytest.raises(SystemExit, match="2"):
        bursts.main(["--dataset", "hoard/no/such-v0"])
    assert "hoard/no/such-v0" in capsys.readouterr().err


def test_all_weights_count():
    assert len(bursts.flat(nn.Linear(3, 2))) == 8


@pytest.mark.parametrize(
    ("name", "dataset"), [("pointmaze", "hoard/pointmaze/umaze-v0"), ("pendulum", "hoard/pendulum/mixed-v0")]
)
def test_the_page_shows_what_is_on_file(name, dataset):
    found = bursts.summary(pd.read_csv(ROOT / "experiments" / "moorl-meta" / f"bursts-{name}.csv"))
    page = (ROOT / "docs" / "algorithms" / "moorl.md").read_text()
    for source, shown in (("offline", "data"), ("online", "replay")):
        row = found.loc[source]
        changes = [f"{100 * row[f'{of}, {when}']:+.1f} %" for of in ("own", "other") for when in ("burst", "outer")]
        numbers = [f"{row['bursts']:.0f}", *changes, f"{row['cosine, critic']:.2f}", f"{row['cosine, actor']:.2f}"]
        assert f"| `{dataset}` | {shown} | {' | '.join(numbers).replace('-', chr(0x2212))} |" in page

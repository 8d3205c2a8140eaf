"""`hoard evaluate`, `watch`, `export`, `diff`, on a run of each kind of policy."""

from __future__ import annotations

import json
import shutil

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

import hoard
from hoard.cli import main
from hoard.records import media

QUICK = {"updates": 40, "hidden": (16,), "log_every": 20, "eval_every": 40, "final_eval_episodes": 2}


@pytest.fixture
def call(capsys):
    """Run a command in this process: (exit status, stdout, stderr)."""

    def run(*args):
        with pytest.raises(SystemExit) as end:
            main([*map(str, args)])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


@pytest.fixture(scope="module")
def iql(tiny, tmp_path_factory):
    return hoard.train("iql", tiny, results=tmp_path_factory.mktemp("iql"), **QUICK)


@pytest.fixture(scope="module")
def rcsl(tiny, tmp_path_factory):
    return hoard.train("rcsl", tiny, results=tmp_path_factory.mktemp("rcsl"), **QUICK)


def test_evaluate(call, iql):
    status, out, _ = call("evaluate", iql, "--episodes", 3)
    assert status == 0
    assert "iql on test/pendulum-v0, 3 episodes of Pendulum-v1" in out
    rows = json.loads(call("evaluate", iql, "--episodes", 3, "--json")[1])["episodes"]
    assert f"{np.mean([row['return'] for row in rows]):.2f}" in out
    by_two = call("evaluate", iql, "--episodes", 3, "--json", "--eval-processes", 2)[1]
    assert json.loads(by_two)["episodes"] == rows
    refused = [((iql, "--episodes", 0), "--episodes must be"), ((iql.parent,), "there is no policy.json")]
    refused.append(((iql, "--eval-processes", 0), "--eval-processes 0: must be at least 1"))
    for args, message in refused:
        status, _, err = call("evaluate", *args)
        assert (status, message in err) == (2, True)


def test_a_damaged_policy_is_named(call, iql, tmp_path):
    run = shutil.copytree(iql, tmp_path / "run")
    (run / "policy.safetensors").write_bytes((iql / "policy.safetensors").read_bytes()[:100])
    status, _, err = call("evaluate", run)
    assert (status, "policy.safetensors" in err) == (2, True)


def test_watch_writes_video_and_image(call, iql, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    status, out, err = call("watch", iql, "--out", tmp_path / "swing")
    assert status == 0, err
    assert (tmp_path / "swing.mp4").stat().st_size > 1000
    with Image.open(tmp_path / "swing.gif") as image:
        assert image.n_frames > 50
        assert image.size[0] == 320
    assert "returns: -" in out
    status, _, err = call("watch", iql, "--out", tmp_path / "nowhere" / "swing")
    assert (status, "there is no folder" in err) == (2, True)


def test_what_is_filmed_is_what_is_evaluated(call, iql, tmp_path):
    for name in ("one.gif", "other.gif"):
        status, out, err = call("watch", iql, "--out", tmp_path / name, "--episodes", 2, "--seed", 5)
        assert status == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gif", "other.gif"]  # no film was asked for
    assert (tmp_path / "one.gif").read_bytes() == (tmp_path / "other.gif").read_bytes()
    rows = json.loads(call("evaluate", iql, "--episodes", 2, "--seed", 5, "--json")[1])["episodes"]
    assert f"returns: {rows[0]['return']:.2f}, {rows[1]['return']:.2f}" in out
    record = media.read_record(tmp_path / "one.gif")
    assert record["episodes"] == rows
    assert (record["seed"], record["algo"], record["dataset"]) == (5, "iql", "test/pendulum-v0")
    assert "2 evaluation episodes from seed 5: mean return -" in record["alt"]


def test_without_ffmpeg_there_is_still_an_image(call, iql, tmp_path, monkeypatch):
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    status, out, err = call("watch", iql, "--out", tmp_path / "swing")
    assert status == 0, err
    assert out.startswith(f"{tmp_path / 'swing.gif'}\nreturns:")
    status, _, err = call("watch", iql, "--out", tmp_path / "swing.mp4")
    assert (status, "there is no ffmpeg" in err) == (2, True)


def test_a_report_with_films(call, iql, rcsl, tmp_path):
    """A folder of two runs: one policy is filmed, the other was lost."""
    results = tmp_path / "results"
    for run in (iql, rcsl):
        shutil.copytree(run, results / "runs" / run.parent.parent.name / run.parent.name / run.name)
    lost = results / "runs" / "rcsl" / rcsl.parent.name / rcsl.name
    (lost / "policy.json").unlink()
    status, out, err = call("report", results, "--rollouts")
    assert status == 0, err
    film = results / "runs" / "iql" / iql.parent.name / iql.name / "policy.gif"
    assert f"{film}\n" in out
    assert f"runs/rcsl/{rcsl.parent.name}/{rcsl.name}: it has kept no policy" in out
    with Image.open(film) as image:
        assert (image.n_frames, image.size[0]) == (100, 240)
    assert not (film.parent / "paths.png").exists()  # a pendulum is no maze
    page = (results / "report.html").read_text()
    assert page.count("data-film=") == 1
    assert "Film of iql on test/pendulum-v0, 1 evaluation episode from seed 0: return -" in page
    before = film.stat().st_mtime_ns
    assert call("report", results, "--rollouts")[0] == 0
    assert film.stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
@pytest.mark.parametrize("name", ["iql", "rcsl"])
def test_an_exported_policy_is_the_policy(call, request, tmp_path, name, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    run, file = request.getfixturevalue(name), tmp_path / f"policy.{kind}"
    status, out, err = call("export", run, "--format", kind, "--out", file)
    assert status == 0, err
    assert "equal to the policy within" in out
    policy = hoard.load_policy(run)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    inputs = [obs] + ([np.zeros(5, np.float32)] if name == "rcsl" else [])
    if kind == "torchscript":
        answer = torch.jit.load(file)(*map(torch.as_tensor, inputs)).numpy()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        answer = session.run(None, dict(zip(("obs", "return_so_far"), inputs)))[0]
    assert answer == pytest.approx(policy(obs), abs=1e-5)


def test_a_policy_that_looks_further_back_is_not_exported(call, tiny, tmp_path):
    options = {"updates": 30, "width": 8, "blocks": 1, "heads": 2, "batch_size": 8, "log_every": 10, "eval_every": 30}
    run = hoard.train("decision_transformer", tiny, results=tmp_path, final_eval_episodes=1, **options)
    status, _, err = call("export", run, "--out", tmp_path / "policy.pt")
    assert (status, "cannot be exported" in err) == (2, True)
    assert not (tmp_path / "policy.pt").exists()


def test_paths_need_a_maze_and_a_place(call, iql, tiny, tmp_path):
    for args, message in (
        ((iql,), "Pendulum-v1 is no maze whose walls are known"),
        ((tiny,), "is no folder of a run; for a dataset, give --out FILE"),
        ((tiny, "--out", tmp_path / "a.png", "--seed", -1), "--seed -1: must be at least 0"),
    ):
        status, _, err = call("paths", *args)
        assert (status, message in err) == (2, True), err


def test_diff_shows_the_share(call, tmp_path):
    status, out, _ = call("diff", "iql", "iql")
    assert (status, out) == (0, "iql.py and iql.py share 100 % of their lines\n")
    out = call("diff", "rlpd", "moorl")[1]
    assert "+    eta_meta: float" in out
    assert "rlpd.py and moorl.py share" in out
    half = tmp_path / "half.py"
    half.write_text("a\nb\n")
    whole = tmp_path / "whole.py"
    whole.write_text("a\n\nb\nc\nd\ne\nf\n")
    assert "share 50 %" in call("diff", half, whole, "--quiet")[1]

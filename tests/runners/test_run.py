"""One run, as a user starts it: records, resume, failures, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import ROOT, command, small
from resume import Killed, assert_same, assert_same_run, checkpoint, only_run

import hoard
from hoard import datasets
from hoard.runners import evaluate, trackers
from hoard.runners.algorithms import import_file
from hoard.runners.evaluate import Evaluator
from hoard.runners.run import Run


def test_records(tiny, run_file, tmp_path):
    done = run_file("iql", *small(tiny))
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path / "results")
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["update"]) == ("finished", 60)

    rows = pd.read_parquet(folder / "episodes.parquet")
    assert rows.groupby(["update", "final"]).size().to_dict() == {(30, False): 2, (60, True): 3}
    assert (rows.length == 200).all()
    assert (rows.eval_seed >= 2**31).all()
    assert rows.eval_seed.is_unique
    low, high = (json.loads(p.read_text()) for p in [metadata(tiny)] * 2)
    scale = high["ref_max_score"] - low["ref_min_score"]
    assert rows.score.to_numpy() == pytest.approx(100 * (rows["return"] - low["ref_min_score"]).to_numpy() / scale)

    times = pd.read_parquet(folder / "evaluations.parquet")
    assert times["update"].tolist() == [30, 60]
    assert 0 < times["training_time"][0] < times["training_time"][1]
    assert times["training_time"][1] < status["wall_time"]  # which has the evaluations too

    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert metrics["update"].tolist() == [10, 20, 30, 40, 50, 60]  # updates / log_every rows
    assert metrics.notna().all().all()

    config = json.loads((folder / "config.json").read_text())
    assert config["overrides"]["updates"] == 60
    assert "discount" not in config["overrides"]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", provenance["dataset"]["sha256"])
    assert provenance["versions"]["torch"]
    returns = provenance["dataset"]["returns"]
    assert (len(returns), provenance["dataset"]["episodes"]) == (101, 10)
    assert returns == sorted(returns)
    assert "-> " in done.stdout
    assert "update 60/60" in (folder / "log.txt").read_text()


def metadata(dataset_id: str) -> Path:
    from hoard.datasets.minari.store import path_of

    return path_of(dataset_id) / "data" / "metadata.json"


def test_finished_runs_are_not_run_again_and_a_changed_file_is_a_new_run(tiny, run_file, tmp_path):
    fork = tmp_path / "fork.py"
    fork.write_text((ROOT / "algos" / "bc.py").read_text())
    assert run_file(fork, *small(tiny)).returncode == 0
    again = run_file(fork, *small(tiny))
    assert (again.returncode, again.stdout.startswith("finished before")) == (0, True)
    fork.write_text(fork.read_text() + "\n# a comment is no change, nor is how often metrics are written\n")
    assert run_file(fork, *small(tiny, log_every=20, checkpoint_every=30)).stdout.startswith("finished before")
    fork.write_text(fork.read_text() + "\nCHANGED = True\n")
    assert run_file(fork, *small(tiny)).stdout.startswith("fork on")
    assert run_file(fork, *small(tiny, lr=0.5)).stdout.startswith("fork on")
    assert len(list((tmp_path / "results").glob("runs/fork/*/*"))) == 3


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("iql", {"actor_dropout": 0.1, "normalize_obs": True}),
        pytest.param("rcsl", {"dropout": 0.1, "extra_targets": "0.5 1.5"}, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_undisturbed(tiny, tmp_path, algo, options):
    """SIGKILL at several moments, started again each time: rows, metrics, weights and generators equal to the bit."""
    args = small(tiny, updates=400, eval_every=70, checkpoint_every=30, log_every=40, **options)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run(command(algo, *args, results=straight), check=True, capture_output=True, timeout=120)
    kills = 0
    for after in (35, 100, 180, 290):  # kill once this update has been reached; none is a checkpoint's
        process = subprocess.Popen(command(algo, *args, results=broken), stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            states = list(broken.glob("runs/*/*/*/status.json"))
            if states and json.loads(states[0].read_text())["update"] >= after:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.communicate()
    assert kills >= 2, "the runs ended before they could be killed"
    resumed = subprocess.run(command(algo, *args, results=broken), capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(straight, broken)
    assert "resuming after update" in (only_run(broken) / "log.txt").read_text()


def test_a_kill_at_any_write_loses_nothing(tiny, run_file, tmp_path, monkeypatch):
    """The process dies at its k-th file, before or after the rename, for every k: the result is that of no kill."""
    args = small(
        tiny, updates=20, log_every=5, eval_every=10, checkpoint_every=5, eval_episodes=1, final_eval_episodes=1
    )
    run_file("bc", *args, results=tmp_path / "straight")
    replace, done = os.replace, 0
    for k in range(1000):
        results, writes = tmp_path / str(k), 0

        def dying(source, target, k=k):
            nonlocal writes
            writes += 1
            if writes == k // 2 + 1:
                if k % 2:
                    replace(source, target)
                raise Killed
            replace(source, target)

        monkeypatch.setattr(os, "replace", dying)
        try:
            run_file("bc", *args, results=results)
        except Killed:
            done += 1
        monkeypatch.setattr(os, "replace", replace)
        if writes <= k // 2:
            break  # the run had no k-th write: every one has been tried
        assert run_file("bc", *args, results=results).returncode == 0
        assert_same_run(results, tmp_path / "straight")
        assert not list(only_run(results).glob(".*.tmp"))
    assert done > 20


def test_a_kill_during_an_evaluation(tiny, run_file, tmp_path, monkeypatch):
    args = small(tiny)
    run_file("iql", *args, results=tmp_path / "straight")
    lockstep = Evaluator._lockstep

    def dying(self, *args):
        lockstep(self, *args)
        raise Killed

    monkeypatch.setattr(Evaluator, "_lockstep", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            run_file("iql", *args)
    monkeypatch.setattr(Evaluator, "_lockstep", lockstep)
    assert run_file("iql", *args).returncode == 0
    assert_same_run(tmp_path / "straight", tmp_path / "results")


def test_asked_to_stop_it_checkpoints_and_goes_on(tiny, tmp_path):
    args = small(tiny, updates=3000, eval_every=1000, checkpoint_every=100000)
    results = tmp_path / "results"
    process = subprocess.Popen(command("bc", *args, results=results), stdout=subprocess.PIPE, text=True)
    wait_for_update(results, 200)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    folder = only_run(results)
    state = json.loads((folder / "status.json").read_text())
    assert state["status"] == "interrupted"
    assert checkpoint(folder)["update"] == state["update"] < 3000
    resumed = subprocess.run(command("bc", *args, results=results), capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0
    assert f"resuming after update {state['update']}" in resumed.stdout


def wait_for_update(results: Path, update: int, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        states = list(results.glob("runs/*/*/*/status.json"))
        if states and json.loads(states[0].read_text())["update"] >= update:
            return
        time.sleep(0.01)
    raise AssertionError(f"update {update} was not reached in {timeout} s")


def test_one_process_at_a_time_in_a_run(tiny, tmp_path):
    args = small(tiny, updates=100_000, eval_every=100_000)
    results = tmp_path / "results"
    first = subprocess.Popen(command("bc", *args, results=results), stdout=subprocess.DEVNULL)
    try:
        wait_for_update(results, 10)
        second = subprocess.run(command("bc", *args, results=results), capture_output=True, text=True, timeout=60)
        assert second.returncode == 75
        assert "another process" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_nan_in_a_loss_stops_the_run_and_names_the_update(tiny, run_file, tmp_path):
    source = (ROOT / "algos" / "iql.py").read_text()
    hook = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
    assert hook in source
    broken = tmp_path / "broken.py"
    broken.write_text(
        source.replace(hook, "        if number == 37:\n            buffer.reward *= float('nan')\n" + hook)
    )
    done = run_file(broken, *small(tiny, eval_every=20))
    assert done.returncode == 1
    folder = only_run(tmp_path / "results")
    status = json.loads((folder / "status.json").read_text())
    assert status["status"] == "failed"
    # The reward of update 37 is the first that is not a number, and the critic's loss sees it at once.
    assert "losses/critic is nan at update 37" in status["error"]
    # Also where checkpoints are written more often than losses are looked at.
    assert (
        run_file(
            broken, *small(tiny, log_every=60, eval_every=60, checkpoint_every=20), results=tmp_path / "2"
        ).returncode
        == 1
    )
    assert checkpoint(only_run(tmp_path / "2"))["update"] == 20
    for tensor in checkpoint(folder)["objects"]["networks.critic"].values():
        assert torch.isfinite(tensor).all()


def test_state_that_cannot_be_read_back_is_found_out_at_once(tiny, run_file, tmp_path):
    """A fork that registers NumPy state learns of it at the first checkpoint, not after a kill."""
    source = (ROOT / "algos" / "bc.py").read_text()
    fork = tmp_path / "fork.py"
    extra = "class Odd:\n    def state_dict(self):\n        return {'x': __import__('numpy').ones(3)}\n\n\ndef train("
    fork.write_text(source.replace("def train(", extra).replace("run.register(actor", "run.register(odd=Odd(), actor"))
    assert run_file(fork, *small(tiny)).returncode == 1
    status = json.loads((only_run(tmp_path / "results") / "status.json").read_text())
    assert "cannot be read back" in status["error"]


def test_what_ends_a_run_before_it_trains_is_said(tiny, run_file, tmp_path):
    assert run_file("bc", *small(tiny)).returncode == 0
    folder = only_run(tmp_path / "results")
    (folder / "status.json").unlink()
    (folder / "provenance.json").unlink()
    (folder / "provenance.json").mkdir()  # so that it cannot be written
    done = run_file("bc", *small(tiny))
    assert done.returncode == 1
    assert "IsADirectoryError" in done.stderr
    assert "provenance.json" in done.stderr


def test_a_run_that_could_not_begin_holds_no_lock(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "_write_provenance", lambda self: 1 / 0)
    options = {"updates": 20, "hidden": (8,), "eval_every": 20, "results": tmp_path}
    with pytest.raises(ZeroDivisionError) as kept:
        hoard.train("bc", tiny, **options)
    assert kept.tb is not None  # as in a notebook, where the traceback keeps the run alive
    monkeypatch.undo()
    assert hoard.train("bc", tiny, **options).is_dir()


def test_a_run_continued_before_its_first_update_names_both_revisions(tiny, tmp_path, monkeypatch):
    """A preparatory phase is work as well."""
    options = {"updates": 20, "hidden": (8,), "eval_every": 20, "results": tmp_path}
    folder = hoard.train("bc", tiny, **options)
    cfg, dataset = import_file(ROOT / "algos" / "bc.py").Config(tiny, updates=20, hidden=(8,)), datasets.load(tiny)
    made = {"algo": "bc", "source": "x = 1\n", "config": {}, "overrides": {}}
    shutil.rmtree(folder)
    with Run(folder, cfg, dataset, **made) as run:
        run.register(nothing=torch.nn.Linear(1, 1))
        run.save_checkpoint()
    monkeypatch.setattr("hoard.runners.provenance.code_revision", lambda: "later")
    with Run(folder, cfg, dataset, **made):
        pass
    revisions = json.loads((folder / "provenance.json").read_text())["revisions"]
    assert len(revisions) == 2
    assert revisions[1] == "later"


def test_the_seed_reaches_all_that_a_run_draws(tiny, tmp_path):
    config = import_file(ROOT / "algos" / "bc.py").Config
    options = {"updates": 20, "hidden": (8,), "eval_every": 10}
    seen = []
    for seed in (0, 1):
        folder = hoard.train("bc", tiny, seed=seed, results=tmp_path, **options)
        rows = pd.read_parquet(folder / "episodes.parquet")
        made = {"algo": "bc", "source": "x = 1\n", "config": {}, "overrides": {}}
        with Run(tmp_path / f"bare-{seed}", config(tiny, seed=seed), datasets.load(tiny), **made) as run:
            first, drawn = run.training_env().obs, torch.rand(3, generator=run.generator)
        seen.append((set(rows.eval_seed), (folder / "policy.safetensors").read_bytes(), first.tolist(), drawn.tolist()))
    (seeds, *rest), (other_seeds, *others) = seen
    assert not seeds & other_seeds
    assert all(one != other for one, other in zip(rest, others, strict=True))


def test_methods_of_one_seed_meet_the_same_episodes(tiny, tmp_path):
    """At an update offline, at an environment step online, whatever number of updates led there."""

    def episodes(algo: str, axis: str, **more) -> dict[int, list[int]]:
        options = {"hidden": (8,), "batch_size": 16, "eval_every": 20, "results": tmp_path, "seed": 3}
        rows = pd.read_parquet(hoard.train(algo, tiny, **options | more) / "episodes.parquet")
        return {at: own.eval_seed.tolist() for at, own in rows.groupby(axis)}

    assert episodes("bc", "update", updates=40) == episodes("iql", "update", updates=40)
    online = {"updates": 0, "online_steps": 240, "start_steps": 210, "eval_every": 200, "batch_size": 16}
    often = episodes("rlpd", "env_step", **online, updates_per_step=3)
    assert often == episodes("sac", "env_step", **online)
    assert set(often) == {200, 240}


def test_a_damaged_checkpoint_is_named(tiny, run_file, tmp_path):
    assert run_file("bc", *small(tiny)).returncode == 0
    folder = only_run(tmp_path / "results")
    (folder / "checkpoint.pt").write_bytes(b"half")
    (folder / "status.json").unlink()
    done = run_file("bc", *small(tiny))
    assert done.returncode == 2
    assert "checkpoint.pt cannot be read back" in done.stderr
    assert "delete" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--expectil", "0.9"], "--expectile"),
        (["--seed", "-1"], "seed -1: must be 0 or more"),
        (["--updates", "0"], "updates 0: must be at least 1"),
        (["--lr", "-1"], "lr -1.0: must be above 0"),
        (["--batch-size", "0"], "batch_size 0: must be at least 1"),
        (["--expectile", "1.5"], "expectile 1.5: must lie between 0 and 1"),
        (["--discount", "2"], "discount 2.0: must be between 0 and 1"),
        (["--lr", "nan"], "lr nan: must be a number"),
        (["--hidden", "64", "0"], "hidden (64, 0): must be widths of at least 1"),
        (["--update-order", "jax"], "update-order"),
        (["--lr", "fast"], "--lr"),
        (["--preset", "corll"], "paper, corl"),
        (["--device", "tpu"], "tpu"),
        (["--eval-processes", "0"], "eval_processes 0: must be at least 1"),
        (["--dataset", "hoard/pendulum/mixt-v0"], "hoard/pendulum/mixed-v0"),
    ],
)
def test_bad_options_are_refused(tiny, run_file, args, message):
    done = run_file("iql", *small(tiny), *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_unwritable_results_folder(tiny, run_file, tmp_path):
    (tmp_path / "results").write_text("in the way")
    done = run_file("iql", *small(tiny))
    assert done.returncode == 2
    assert "is not writable" in done.stderr


def test_booleans_mean_what_they_say(tiny, run_file, tmp_path):
    assert run_file("iql", *small(tiny), "--clip-actions", "false", "--normalize-obs", "True").returncode == 0
    config = json.loads((only_run(tmp_path / "results") / "config.json").read_text())["config"]
    assert (config["clip_actions"], config["normalize_obs"]) == (False, True)


def test_help_shows_every_option_with_its_default():
    done = subprocess.run([sys.executable, str(ROOT / "algos" / "iql.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for words in ("--expectile", "default: 0.7", "--preset", "--results"):
        assert words in done.stdout


def test_presets_are_defaults_that_options_override(tiny, run_file, tmp_path):
    assert run_file("iql", *small(tiny), "--preset", "corl", "--q-loss", "sum").returncode == 0
    config = json.loads((only_run(tmp_path / "results") / "config.json").read_text())
    assert config["config"]["update_order"] == "corl"
    assert config["config"]["q_loss"] == "sum"
    assert config["overrides"]["update_order"] == "corl"


def test_evaluating_does_not_change_training(tiny, run_file, tmp_path):
    """The weights after 60 updates do not depend on how often they were evaluated on the way."""
    for name, every in (("often", 15), ("once", 60)):
        assert run_file("iql", *small(tiny, eval_every=every), results=tmp_path / name).returncode == 0
    often, once = (checkpoint(only_run(tmp_path / name)) for name in ("often", "once"))
    assert_same(often["objects"], once["objects"])
    assert torch.equal(often["generator"], once["generator"])
    assert [row for row in often["records"]["episodes"] if row["final"]] == once["records"]["episodes"]


def test_other_processes_may_step_the_evaluations(tiny, run_file, tmp_path, monkeypatch):
    """The run is the same to the last bit, address included, and leaves no process behind."""
    crews = []

    class Noted(evaluate.Crew):
        def __init__(self, alone, processes):
            super().__init__(alone, processes)
            crews.append([child.process for child in self._children])

    monkeypatch.setattr(evaluate, "Crew", Noted)
    for name, more in (("here", []), ("there", ["--eval-processes", "3"])):
        done = run_file("iql", *small(tiny), *more, results=tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "here", tmp_path / "there")
    ((first, second),) = crews
    assert first.poll() is not None
    assert second.poll() is not None


def test_a_metric_that_appears_late_is_kept(tiny, run_file, tmp_path):
    source = (ROOT / "algos" / "bc.py").read_text()
    fork = tmp_path / "late.py"
    line = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
    assert line in source
    late_too = line + "        if number > 30:\n            run.log({'late': torch.tensor(float(number))})\n"
    fork.write_text(source.replace(line, late_too))
    assert run_file(fork, *small(tiny)).returncode == 0
    metrics = pd.read_parquet(only_run(tmp_path / "results") / "metrics.parquet")
    late = metrics.set_index("update")["late"]
    assert late.loc[:30].isna().all()
    assert late.loc[40:].tolist() == [35.5, 45.5, 55.5]  # window means


def test_a_tracker_that_fails_costs_no_run(tiny, run_file, tmp_path, monkeypatch):
    """At its start, in its calls, at its end."""

    class Fails:
        def __call__(self, update, values):
            raise ConnectionError("no network")

        def close(self):
            raise ConnectionError("still none")

    class NeverStarts:
        def __init__(self, *_):
            raise ConnectionError("nobody there")

    class FailsAtItsEnd(Fails):
        def __call__(self, update, values):
            pass

    for tensorboard, wandb in ((NeverStarts, lambda *_: Fails()), (lambda *_: FailsAtItsEnd(), NeverStarts)):
        results = tmp_path / f"results{tensorboard is NeverStarts}"
        monkeypatch.setattr(trackers, "missing_extra", lambda *_: None)
        monkeypatch.setattr(trackers, "TensorBoard", tensorboard)
        monkeypatch.setattr(trackers, "WandB", wandb)
        options = ["--tensorboard", "true", "--wandb", "project"]
        assert run_file("bc", *small(tiny), *options, results=results).returncode == 0
        (folder,) = results.glob("runs/*/*/*")
        assert json.loads((folder / "status.json").read_text())["status"] == "finished"
        said = (folder / "log.txt").read_text()
        assert "a tracker could not be started, the run goes on without it: nobody there" in said
        if tensorboard is NeverStarts:
            assert said.count("Fails failed and is left out from here on: no network") == 1
        else:
            assert "FailsAtItsEnd could not be closed: still none" in said


def test_tensorboard_is_an_option(tiny, run_file, tmp_path):
    done = run_file("bc", *small(tiny), "--tensorboard", "true")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        assert done.returncode == 2
        assert "hoard[tensorboard]" in done.stderr
    else:
        assert done.returncode == 0
        assert list((tmp_path / "results").glob("runs/*/*/*/tensorboard/events*"))

"""Missing datasets are made side by side."""

from __future__ import annotations

import time

from hoard import datasets
from hoard.runners.sweep import ahead

IDS = ["hoard/doublechain/expert-v0", "hoard/gridworld/expert-v0"]


def test_the_last_is_made_while_the_first_is_waited_for(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(ahead, "cores", lambda: 2)
    with ahead.making_ahead(IDS, 2):
        deadline = time.monotonic() + 120
        while not datasets.is_at_hand(IDS[1]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not datasets.is_at_hand(IDS[0])  # left to whoever goes from the first on


def test_nothing_is_started_without_need(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(ahead, "cores", lambda: 2)
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda *_, **__: 1 / 0)
    for ids, jobs in ((IDS, 1), (IDS[:1], 2), ([*IDS[:1], "hoard/comblock/h5-v0", "d4rl:hopper-medium-v2"], 4)):
        with ahead.making_ahead(ids, jobs):
            pass


def test_helpers_end_with_it(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(ahead, "cores", lambda: 2)
    started, popen = [], ahead.subprocess.Popen
    monkeypatch.setattr(
        ahead.subprocess, "Popen", lambda *args, **more: started.append(popen(*args, **more)) or started[-1]
    )
    with ahead.making_ahead(["hoard/pendulum/mixed-v0", "hoard/maze2d/umaze-v0"], 2):
        assert started[0].poll() is None
    assert started[0].poll() is not None

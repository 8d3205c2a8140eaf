"""The example of the README's kind: data, training, policy, score and film, in one script."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import imageio.v3 as iio
import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_example_runs_as_typed(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "first_policy.py")],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    score = float(re.search(r"score of 20 fresh episodes: (\S+)", done.stdout)[1])
    assert 40 < score < 130  # a random policy has 0, the data's expert 100
    frames = iio.imread(tmp_path / "first_policy.gif")
    assert len(frames) > 20
    assert frames[0].std() > 5  # something is to be seen
    assert abs(frames[-1].astype(int) - frames[0]).max() > 50  # and it moves
    assert (tmp_path / "first_policy.mp4").stat().st_size > 1000

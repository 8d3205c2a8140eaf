"""`benchmarks/peers.py`: peers' code is found and refused by name; no time is asserted."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import ROOT

# Its layout is CORL's: imports that are not installed, decorated parts that need them, and the classes that are timed.
STAND_IN = """
import d4rl
import pyrallis

BIG = 2.0

@dataclass
class TrainConfig:
    device: str = "cuda"

class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: Optional[int] = None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

class TwinQ(Net):
    def __init__(self, obs, action, hidden):
        super().__init__(obs + action, 1, hidden)

class ValueFunction(Net):
    def __init__(self, obs, hidden):
        super().__init__(obs, 1, hidden)

class GaussianPolicy(Net):
    def __init__(self, obs, action, bound, hidden):
        super().__init__(obs, action, hidden)

class ImplicitQLearning:
    def __init__(self, bound, actor, actor_optimizer, q, q_optimizer, v, v_optimizer):
        self.v, self.optimizer = v, v_optimizer

    def train(self, batch: gym.Env):
        loss = BIG * self.v.net(batch[0]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

@pyrallis.wrap()
def train(config: TrainConfig):
    raise AssertionError
"""


def peers(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--hidden", "8", "--seconds", "0", "--turns", "1"]
    return subprocess.run([*command, *args], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_row_for_each(tmp_path):
    (tmp_path / "iql.py").write_text(STAND_IN)
    done = peers("--corl", str(tmp_path / "iql.py"))
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["IQL", "hoard", "hoard, compiled", "CORL"]


def test_what_is_no_peer_is_refused(tmp_path):
    (tmp_path / "td3.py").write_text(STAND_IN.replace("ImplicitQLearning", "TD3"))
    assert "is not CORL's iql.py: it lacks ImplicitQLearning" in peers("--corl", str(tmp_path / "td3.py")).stderr
    assert "cannot be read" in peers("--corl", str(tmp_path / "none.py")).stderr

"""The rules of the house: who imports whom, no pickle, no global randomness, no side effects of importing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("algos", "analysis", "datasets", "envs", "runners")
SOURCES = sorted(path for package in (*PACKAGES, "hoard") for path in (ROOT / package).rglob("*.py"))
ALGORITHMS = sorted(path for path in (ROOT / "algos").glob("*.py") if path.stem != "__init__")

NUMPY_RANDOM = {"Generator", "RandomState", "default_rng", "SeedSequence", "PCG64"}
NUMPY_SWAP = {"get_state", "set_state"}  # to put a stream in the global one's place, for a package that draws from it
TORCH_SEEDS = {"torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.random.seed"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like", "randn_like"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(source, package):
    """All that a source imports, wherever the statement stands; `from a import b` as a.b, which may be a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def foreign(source, package, allowed):
    """Imports from the house that do not belong to an allowed part of it."""
    inside = {name for name in imports(source, package) if name == "hoard" or name.startswith("hoard.")}
    siblings = {name for name in imports(source, package) if package == "hoard.algos" and name.split(".")[0] in STEMS}
    return {n for n in inside if not any(n == a or n.startswith(a + ".") for a in allowed)} | siblings


STEMS = {path.stem for path in ALGORITHMS}
RUN = ("nn", "scans", "training_env")  # of hoard.runners, beside the package itself: the single-run part
MAY_IMPORT = {
    "algos": ("hoard.datasets", "hoard.envs", *(f"hoard.runners.{name}" for name in ("History", "Run", "main", *RUN))),
    "analysis": ("hoard.analysis", "hoard.records"),
    "datasets": ("hoard.datasets", "hoard.envs", "hoard.records"),
    "envs": ("hoard.envs", "hoard.records"),
    "runners": ("hoard.runners", "hoard.datasets", "hoard.envs", "hoard.records"),
    "hoard/records": ("hoard.records",),
}


def dotted(node):
    """`a.b.c` of an attribute chain, else ''."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


# torch's draws that write into a tensor, among them those of nn.init, and layers that draw when made or called.
DRAWS_IN_PLACE = {
    "normal_", "uniform_", "bernoulli_", "exponential_", "random_", "trunc_normal_", "orthogonal_", "sparse_",
    "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_",
}  # fmt: skip
DRAWN_LAYERS = {
    "Linear", "Bilinear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "Embedding", "RNN", "GRU", "LSTM",
    "MultiheadAttention", "TransformerEncoderLayer", "Dropout", "AlphaDropout",
}  # fmt: skip


def global_randomness(source, may_seed=False, may_swap=False):
    """Uses of a random stream that belongs to nobody, as text."""
    found = [f"import {name}" for name in imports(source, "") if name == "random" or name.startswith("random.")]
    for name in imports(source, ""):
        if name.startswith("numpy.random.") and name.split(".")[2] not in NUMPY_RANDOM:
            found.append(f"import {name}")
    allowed = NUMPY_RANDOM | (NUMPY_SWAP if may_swap else set())
    for node in ast.walk(ast.parse(source)):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        head, _, function = name.rpartition(".")
        if head in ("np.random", "numpy.random") and function not in allowed:
            found.append(name)
        if (name in TORCH_SEEDS or name.startswith("torch.cuda.manual_seed")) and not may_seed:
            found.append(name)
        if isinstance(node, ast.Call):
            head, _, function = dotted(node.func).rpartition(".")
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if function in TORCH_DRAWS and head == "torch" and "generator" not in options:
                found.append(f"torch.{function} without generator")
            if function in DRAWS_IN_PLACE and "generator" not in options:
                found.append(f"{function} without generator")
            if head in ("nn", "torch.nn") and function in DRAWN_LAYERS:
                found.append(f"nn.{function}, whose weights or noise come from the global stream")
            if head in ("F", "nn.functional", "torch.nn.functional") and "dropout" in function:
                found.append(f"functional {function}")
            if function in ("default_rng", "RandomState", "SeedSequence") and not node.args and not options:
                found.append(f"{function} without a seed")
            if options.get("generator") == "None":
                found.append(f"{function} with generator=None")
    return found


def unsafe_loading(source):
    """Ways to read or write Python objects that run code when read, as text."""
    tree = ast.parse(source)
    found = [name for name in imports(source, "") if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("read_pickle", "to_pickle"):
            found.append(node.attr)
        if isinstance(node, ast.Call):
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if options.get("allow_pickle", "False") != "False":
                found.append("allow_pickle")
            if dotted(node.func) == "torch.load" and options.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
    return found


def test_the_house_is_found():
    assert {path.parent.name for path in SOURCES} >= set(PACKAGES)
    assert ALGORITHMS


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_stay_in_the_house_rules(path):
    room = next((room for room in MAY_IMPORT if name_of(path).startswith(room + "/")), None)
    if room is not None:
        inside = ".".join(["hoard", *path.relative_to(ROOT).parent.parts]).removeprefix("hoard.hoard")
        assert foreign(path.read_text(), inside, MAY_IMPORT[room]) == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_global_randomness(path):
    name = name_of(path)
    rights = {"may_seed": name == "runners/run.py", "may_swap": name == "envs/ogbench.py"}
    assert global_randomness(path.read_text(), **rights) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_pickle(path):
    assert unsafe_loading(path.read_text()) == []


def test_importing_an_algorithm_parses_nothing_and_starts_nothing(tmp_path):
    """In a process of its own, with arguments that any parser would refuse."""
    code = f"""
import importlib, sys, threading
import numpy as np, torch
threads, argv = threading.active_count(), list(sys.argv)
before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
for name in {sorted(STEMS)!r}:
    importlib.import_module("hoard.algos." + name)
assert sys.argv == argv
assert threading.active_count() == threads
assert torch.equal(torch.get_rng_state(), before[0]), "drew from torch"
assert (np.random.get_state()[1] == before[1]).all(), "drew from numpy"
assert torch.get_num_threads() == before[2]
print("imported")
"""
    args = [sys.executable, "-c", code, "--no-such-option", "--help", "--seed", "not a number"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", "")
    assert list(tmp_path.iterdir()) == []


# --- the rules bite ---


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("algos", "from hoard.algos import iql"),
        ("algos", "from hoard.algos.iql import Actor"),
        ("algos", "def f():\n    import hoard.algos.rcsl"),
        ("algos", "from . import iql"),
        ("algos", "from .iql import Actor"),
        ("algos", "from ..analysis import stats"),
        ("algos", "import iql"),
        ("algos", "from hoard import analysis"),
        ("analysis", "from hoard.runners.files import read_json"),
        ("analysis", "from hoard import datasets"),
        ("datasets", "from hoard.runners import Run"),
        ("datasets", "from hoard import algos"),
        ("datasets", "import hoard.analysis.stats"),
        ("envs", "from hoard.datasets import load"),
        ("envs", "from ..runners import run"),
    ],
)
def test_a_forbidden_import_is_seen(package, source):
    assert foreign(source, f"hoard.{package}", MAY_IMPORT[package])


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("algos", "from hoard import datasets, envs\nfrom hoard.runners import Run\nimport torch, hoarder"),
        ("analysis", "from . import stats\nfrom hoard.analysis.results import Results"),
        ("analysis", "from hoard.records.schema import TABLE_SCHEMA"),
        ("datasets", "from hoard.envs import make_env\nfrom .dataset import Dataset"),
    ],
)
def test_an_allowed_import_passes(package, source):
    assert foreign(source, f"hoard.{package}", MAY_IMPORT[package]) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from random import choice",
        "import numpy as np\nnp.random.seed(0)",
        "np.random.randn(3)",
        "from numpy.random import rand",
        "torch.manual_seed(0)",
        "torch.cuda.manual_seed_all(0)",
        "torch.rand(3)",
        "torch.randint(0, 3, (2,), device='cpu')",
        "torch.randn(3, generator=None)",
        "np.random.default_rng()",
        "w.normal_()",
        "nn.init.uniform_(w, 0, 1)",
        "nn.Linear(3, 3)",
        "torch.nn.Dropout(0.1)",
        "F.dropout(x)",
    ],
)
def test_global_randomness_is_seen(source):
    assert global_randomness(source)


def test_private_randomness_passes():
    source = "np.random.default_rng(0)\ntorch.randn(3, generator=g)\nfrom numpy.random import Generator\nrng.random(3)"
    assert global_randomness(source) == []
    source = "nn.utils.skip_init(nn.Linear, 3, 3)\nnn.init.uniform_(w, generator=g)\nw.normal_(generator=g)"
    assert global_randomness(source) == []
    assert global_randomness("torch.manual_seed(0)", may_seed=True) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import joblib",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "frame.to_pickle(f)",
        "pd.read_pickle(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
    ],
)
def test_pickle_is_seen(source):
    assert unsafe_loading(source)


def test_safe_loading_passes():
    assert unsafe_loading("np.load(f, allow_pickle=False)\ntorch.load(f, weights_only=True)") == []

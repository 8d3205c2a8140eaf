"""Suite files that are no suites, and options that no suite may give."""

from __future__ import annotations

import re

import pytest

from hoard.runners import algorithms
from hoard.runners.algorithms import FOLDER
from hoard.runners.sweep.limits import Resources
from hoard.runners.sweep.suite import SuiteError, available, line_of, read, select

TEXT = """
description = "a test"
seeds = 2
datasets = ["test/pendulum-v0"]
[options]
updates = 300
[method.bc]
"""


@pytest.fixture
def suite_file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('["test/pendulum-v0"]', "[]", "'datasets' is empty"),
        ("[method.bc]", "[method]", "'method' is empty"),
        ("seeds = 2", "seeds = true", "'seeds' is needed and must be a int"),
        ("[method.bc]", "[method.bc]\nalgo = 3", "method.bc: algo must be the name or the path"),
        ("[method.bc]", "[method.bc]\nalgo = 'bcc'", "method.bc: no algorithm 'bcc' in algos/; nearest: bc"),
        ("[method.bc]", "[method.bc]\nalgo = '../tests/helpers'", "no algorithm '../tests/helpers'"),
        ("[method.bc]", "[method.bc]\nalgo = 'no_such.py'", "method.bc: no algorithm file"),
        ("[method.bc]", "[method.bc]\ndatasets = 'test/pendulum-v0'", "datasets must be a list"),
        ("[method.bc]", "[method.bc]\ndatasets = []", "datasets must be a list"),
        ("[method.bc]", "[method.bc]\nseeds = true", "seeds must be a count"),
        ("[method.bc]", "[method.bc]\nwithout = ['lr']", "without must be a list of options of the suite"),
        ("[method.bc]", "[method.bc]\nwithout = 'updates'", "there are updates; not 'updates'"),
        ("[method.bc]", "[method.bc]\non_request = 'yes'", "on_request must be true or false"),
        ("[method.bc]", "[method.bc]\non_request = true", "every method is on_request"),
        ("[options]", "dataset = 3\n[options]", "dataset must be tables of options"),
        ("[options]", "options = 3\n[other]", "unknown key 'other'"),
        ("updates = 300", "updates = { a = 1 }", "options: updates must be a number"),
        ("updates = 300", "updates = 1979-05-27", "options: updates must be a number"),
        ("updates = 300", 'hidden = [16, "--seed", 7]', "options: hidden must be a number"),
        ("updates = 300", '"seed=7" = []', "'seed=7' is not the name of an option"),
        ("updates = 300", '"keep-checkpoint" = true', "'keep-checkpoint' is not an option of a suite"),
    ],
)
def test_what_is_no_suite_is_refused(suite_file, before, after, message):
    assert before in TEXT
    suite_file.write_text(TEXT.replace(before, after))
    with pytest.raises(SuiteError) as error:
        read(str(suite_file))
    assert message in str(error.value)
    assert str(suite_file) in str(error.value)


LINES = """description = "a test"  # line 1
seeds = 2
datasets = [
    "test/pendulum-v0",
    "test/other-v0",  # 5
]
[options]
updates = 300
lr = 0.1

[dataset."test/other-v0"]
lr = 0.2  # 12

[method.bc]
options = { hidden = [8], dropout = 0.1 }  # 15
[method.bc.dataset."test/pendulum-v0"]
dropout = 0.2

[method.iql.options]
beta = 3.0  # 20
"""


@pytest.mark.parametrize(
    ("key", "sections", "line"),
    [
        ("seeds", [""], 2),
        ("test/other-v0", [""], 5),
        ("lr", ["options"], 9),
        ("lr", ["method.bc", "dataset.test/other-v0", "options"], 12),
        ("dropout", ["method.bc"], 15),
        ("dropout", ["method.bc.dataset.test/pendulum-v0", "method.bc"], 17),
        ("beta", ["method.iql", "method.iql.options"], 20),
        ("bc", ["method"], 14),
        ("test/other-v0", ["dataset"], 11),
        ("eta", ["method.iql.options"], None),
        ("line", [""], None),
    ],
)
def test_lines_are_found(tmp_path, key, sections, line):
    path = tmp_path / "small.toml"
    path.write_text(LINES)
    assert line_of(path, key, *sections) == line


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("updates = 300", '"keep-checkpoint" = true', 6),
        ("[method.bc]", "[method.bc]\nalgo = 'bcc'", 8),
        ("[method.bc]", "[method.bcc]", 7),
        ("[method.bc]", "[method.bc]\nseed = 3", 8),
        ("[method.bc]", "[method.bc.dataset.x]\nlr = 3", 7),
        ("[method.bc]", "[method.bc]\noptions = { lr = 1, seed = 3 }", 8),
        ('["test/pendulum-v0"]', '["test/pendulum-v0", "test/pendulum-v0"]', 4),
    ],
)
def test_errors_name_the_line(suite_file, before, after, line):
    suite_file.write_text(TEXT.replace(before, after))
    with pytest.raises(SuiteError, match=f"small.toml, line {line}: "):
        read(str(suite_file))


def test_a_method_does_without_shared_options_but_not_without_its_own(suite_file):
    suite_file.write_text(
        TEXT.replace("updates = 300", "updates = 300\nlr = 0.1")
        + 'without = ["lr", "online_steps"]\n'
        + '[method.bc10]\nalgo = "bc"\nwithout = ["updates"]\noptions = { updates = 7 }\n'
        + '[dataset."test/pendulum-v0"]\nonline_steps = 5\n'
    )
    first, second = read(str(suite_file)).cells()[:2]
    assert first.options == {"updates": 300}
    assert second.options == {"lr": 0.1, "online_steps": 5, "updates": 7}


RESOURCES = """
description = "a test"
seeds = 1
datasets = ["test/a-v0", "test/b-v0"]
resources = { cpus = 2 }
[options]
updates = 300
[dataset."test/b-v0"]
resources = { memory = "4G", gpus = 1 }
updates = 600
[method.bc]
[method.iql.resources]
cpus = 3
gpus = 0.5
[method.iql.dataset."test/b-v0"]
resources = { memory = "800M" }
"""


def test_later_sections_win_for_resources_too(suite_file):
    """And they are no options: neither the command line of a cell nor its address sees them."""
    suite_file.write_text(RESOURCES)
    cells = {(cell.method, cell.dataset): cell for cell in read(str(suite_file)).cells()}
    assert {place: cell.resources for place, cell in cells.items()} == {
        ("bc", "test/a-v0"): Resources(cpus=2),
        ("iql", "test/a-v0"): Resources(cpus=3, gpus=0.5),
        ("bc", "test/b-v0"): Resources(cpus=2, gpus=1, memory=4 << 30),
        ("iql", "test/b-v0"): Resources(cpus=3, gpus=0.5, memory=800 << 20),
    }
    suite_file.write_text(
        re.sub(r"(?m)^(resources|cpus|gpus).*\n", "", RESOURCES).replace("[method.iql.resources]", "[method.iql]")
    )
    assert [cell.args for cell in read(str(suite_file)).cells()] == [cell.args for cell in cells.values()]


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("{ cpus = 2 }", "{ cpus = 0 }", 5, "resources: cpus must be a whole number from 1, not 0"),
        ("{ cpus = 2 }", "{ cpus = 1.5 }", 5, "cpus must be a whole number from 1, not 1.5"),
        ("{ cpus = 2 }", "{ cpus = true }", 5, "cpus must be a whole number from 1, not True"),
        ("{ cpus = 2 }", "{ cpu = 2 }", 5, "unknown resource 'cpu'; nearest: cpus"),
        ("{ cpus = 2 }", "2", 5, "resources must be a table like"),
        (
            "gpus = 1 }",
            "gpus = 1.5 }",
            9,
            'dataset."test/b-v0".resources: gpus must be a part of one like 0.5, or a whole',
        ),
        ("gpus = 0.5", "gpus = -1", 14, "method.iql.resources: gpus must be"),
        ("gpus = 0.5", "gpus = '1'", 14, "gpus must be"),
        ('"800M"', '"much"', 16, 'method.iql.dataset."test/b-v0".resources: memory much: write a size like'),
        ('"800M"', "true", 16, "memory True: write a size like"),
    ],
)
def test_wrong_resources_are_refused_with_their_line(suite_file, before, after, line, message):
    assert before in RESOURCES
    suite_file.write_text(RESOURCES.replace(before, after).lstrip())
    with pytest.raises(SuiteError) as error:
        read(str(suite_file))
    assert f"small.toml, line {line - 1}: " in str(error.value)
    assert message in str(error.value)


def test_a_folder_is_no_suite(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(SuiteError, match="cannot be read: Is a directory"):
        read(str(tmp_path / "folder.toml"))


def test_no_list_smuggles_an_option_in(suite_file):
    """`--set hidden=16,--seed,7` would give every cell the seed 7."""
    with pytest.raises(SuiteError, match="hidden must be a number"):
        select(read(str(suite_file)), overrides={"hidden": ["16", "--seed", "7"]})


@pytest.mark.parametrize("name", available())
def test_shipped_suites_are_read(name):
    suite = read(name)
    assert suite.cells()
    assert suite.source == ""


def test_a_fork_takes_over_its_originals_settings_and_a_namesake_does_not(suite_file, tmp_path):
    """A name alone makes no fork: of the file's lines, half must be the original's."""
    suite_file.write_text(TEXT + '[method.clone]\nalgo = "iql"\n[method.bc_wide]\nalgo = "bc"\n')
    suite_file.write_text(suite_file.read_text().replace("[method.bc]", "[method.bc]\noptions = { lr = 0.5 }"))
    lines = (FOLDER / "bc.py").read_text().splitlines()
    for name, text in (("my_bc", lines), ("bc_cut", lines[: len(lines) // 2]), ("td3_bc", ["x = 1"]), ("mine", lines)):
        (tmp_path / f"{name}.py").write_text("\n".join(text))
    files = [str(tmp_path / f"{name}.py") for name in ("my_bc", "bc_cut", "td3_bc", "mine")]
    chosen = {m.name: (m.original, m.options) for m in select(read(str(suite_file)), files).methods}
    took = ("bc", {"lr": 0.5})
    assert chosen == {"my_bc": took, "bc_cut": took, "td3_bc": ("", {}), "mine": ("", {})}


def test_a_method_on_request_runs_only_where_it_is_named(suite_file, tmp_path):
    """By its name, by its algorithm's, or as the original of a fork; its settings count then."""
    suite_file.write_text(TEXT + '[method.slow]\nalgo = "iql"\non_request = true\noptions = { lr = 0.5 }\n')
    suite = read(str(suite_file))
    assert {cell.method for cell in suite.cells()} == {"bc"}
    assert {cell.method for cell in select(suite, seeds="7,", overrides={"updates": 1}).cells()} == {"bc"}
    for named in ("slow", "iql"):
        assert {(cell.method, cell.options["lr"]) for cell in select(suite, [named]).cells()} == {("slow", 0.5)}
    (tmp_path / "my_iql.py").write_text((FOLDER / "iql.py").read_text())
    (fork, *_) = select(suite, [str(tmp_path / "my_iql.py")]).cells()
    assert (fork.method, fork.options["lr"]) == ("my_iql", 0.5)


def test_quick_has_settings_for_every_offline_algorithm():
    """Named on the command line it must not train the paper's networks for the suite's few updates."""
    named = {method.algo: method.options for method in read("quick").methods}
    assert set(algorithms.available()) == set(named)
    widths = {algo: max(options["hidden"]) for algo, options in named.items() if "hidden" in options}
    assert {"awac", "cql", "edac", "fql", "odice"} <= set(widths)
    assert set(widths.values()) == {128}


def test_a_fork_of_a_fork_follows_the_nearer(suite_file, tmp_path):
    """`my_two_bc` is called after `bc` and after `two_bc`: the file it shares more lines with is its original."""
    lines = (FOLDER / "bc.py").read_text().splitlines()
    (tmp_path / "two_bc.py").write_text("\n".join([*lines, "TWO = 1"] * 2))
    (tmp_path / "my_two_bc.py").write_text("\n".join([*lines, "TWO = 1"] * 2))
    suite_file.write_text(TEXT + f"[method.two_bc]\nalgo = '{tmp_path / 'two_bc.py'}'\noptions = {{ lr = 0.1 }}\n")
    (method,) = select(read(str(suite_file)), [str(tmp_path / "my_two_bc.py")]).methods
    assert (method.name, method.original, method.options) == ("my_two_bc", "two_bc", {"lr": 0.1})


@pytest.mark.parametrize("name", available())
def test_every_shipped_algorithm_can_be_asked_of_every_suite(name):
    """None is taken for the fork of another: bench learning --algos td3_bc must not get bc's presets."""
    for method in select(read(name), algorithms.available()).methods:
        assert not method.original, method

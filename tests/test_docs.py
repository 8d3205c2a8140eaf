"""The pages say what is so: links lead somewhere, options and presets exist, numbers are those of the experiments."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import hoard

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
ALGORITHMS = sorted(path.stem for path in (ROOT / "algos").glob("*.py") if path.stem != "__init__")
ROOMS = "algos|analysis|datasets|docs|envs|experiments|hoard|runners|tests|tools"

_spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
assert _spec is not None
assert _spec.loader is not None
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def cells_of(line: str) -> list[str]:
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def module_of(algorithm: str):
    return importlib.import_module(f"hoard.algos.{algorithm}")


# --- links and paths ---


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", without_code(page.read_text())):
        if not re.match(r"https?:|mailto:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=name_of)
def test_paths_named_exist(page):
    for target in re.findall(rf"`\.?/?((?:{ROOMS})/[\w./-]*)`", page.read_text()):
        if "my_" not in target and not re.search(r"-v[01]$", target):  # the latter are ids of datasets
            assert (ROOT / target).exists(), target


# --- algorithms ---


def test_every_algorithm_has_a_page_and_every_page_an_algorithm():
    assert sorted(page.stem for page in (DOCS / "algorithms").glob("*.md") if page.stem != "index") == ALGORITHMS
    index = (DOCS / "algorithms" / "index.md").read_text()
    navigation, readme = (ROOT / "mkdocs.yml").read_text(), (ROOT / "README.md").read_text()
    for algorithm in ALGORITHMS:
        assert f"({algorithm}.md)" in index
        assert f"algorithms/{algorithm}.md" in navigation
        assert f"docs/algorithms/{algorithm}.md" in readme


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_page_shows_every_option(algorithm):
    assert (DOCS / "algorithms" / f"{algorithm}.md").read_text().count(hooks.OPTIONS) == 1
    shown = hooks.options_of((ROOT / "algos" / f"{algorithm}.py").read_text())
    assert [name for _, name, _, _ in shown] == [f.name for f in dataclasses.fields(module_of(algorithm).Config)]
    assert all(group and default and meaning for group, _, default, meaning in shown)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_options_and_presets_named_on_a_page_exist(algorithm):
    """Tables with a column "option" name options; every preset of the file is named."""
    page, module = (DOCS / "algorithms" / f"{algorithm}.md").read_text(), module_of(algorithm)
    fields, column = {field.name for field in dataclasses.fields(module.Config)}, None
    for line in page.splitlines():
        if not line.startswith("|"):
            column = None
        elif column is None:
            header = cells_of(line)
            column = header.index("option") if "option" in header else -1
        elif column >= 0:
            first = [re.split(r"\W", name)[0] for name in re.findall(r"`([^`]+)`", line.strip("|").split("|")[column])]
            assert not [name for name in first if name and name not in fields], line
    for preset in module.PRESETS:
        assert f"`{preset}`" in page, preset


# --- numbers ---


def test_algorithm_pages_show_results():
    for algorithm in ALGORITHMS:
        page = (DOCS / "algorithms" / f"{algorithm}.md").read_text()
        assert "../../experiments/" in page or "<!-- table:" in page, algorithm


# --- names ---


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_datasets_and_suites_named_are_known(page):
    from hoard.datasets.recipes import catalogue

    for dataset_id in re.findall(r"hoard/[a-z0-9]+/[a-z0-9-]+-v[01]", page.read_text()):
        assert catalogue.is_known(dataset_id), dataset_id
    shipped = {path.stem for path in (ROOT / "runners" / "suites").glob("*.toml")}
    assert set(re.findall(r"SUITE=([\w-]+)", page.read_text())) <= shipped


def test_quickstart_lists_every_suite():
    quickstart = (DOCS / "quickstart.md").read_text()
    for path in (ROOT / "runners" / "suites").glob("*.toml"):
        assert f"| `{path.stem}` |" in quickstart, path.stem


def test_commands_shown_exist():
    command = [sys.executable, "-c", "from hoard.cli import main; main(['--help'])"]
    shown = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    known = set(re.findall(r"^ {2,6}(\w+) ", shown.stdout, re.M))
    assert {"bench", "report"} <= known
    for page in PAGES:
        for code in re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S):
            for command in re.findall(r"^(?:\.venv/bin/)?hoard (\w+)", code, re.M):
                assert command in known, f"{name_of(page)}: hoard {command}"


def test_make_targets_shown_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)", page.read_text(), re.M):
            assert target in targets, f"{name_of(page)}: make {target}"


def test_python_page_has_every_function_with_its_arguments():
    page = (DOCS / "python.md").read_text()
    for name in set(hoard.__all__) - {"__version__"}:
        heading = re.search(rf"^## `hoard\.{name}\((.*)\)`$", page, re.M)
        assert heading, name
        shown = re.findall(r"(?:^|, )\*{0,2}(\w+)", heading[1])
        for argument in inspect.signature(getattr(hoard, name)).parameters:
            assert argument in shown or argument == "progress", f"{name}({argument})"


def test_columns_of_results_shown_exist():
    page = (DOCS / "python.md").read_text()
    table = page[page.index("| column | meaning |") :].split("\n\n")[0]
    shown = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines()))
    assert {"score", "seed", "run"} <= set(shown)
    assert set(shown) <= set(hoard.results(ROOT / "experiments" / "learning").columns)


# --- code ---


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_example_of_a_new_algorithm_works(tmp_path):
    code = re.search(r'^```python title="(margin_bc\.py)"\n(.*?)^```', (DOCS / "extending.md").read_text(), re.M | re.S)
    assert code
    file = tmp_path / code[1]
    file.write_text(code[2])
    short = ["--updates", "20", "--eval-every", "20", "--final-eval-episodes", "2"]
    for preset in ("margin", "plain"):
        done = subprocess.run(
            [sys.executable, file, "--preset", preset, *short],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    runs = list((tmp_path / "results" / "runs" / "margin_bc").glob("*/*"))
    assert len(runs) == 2
    policy, data = hoard.load_policy(runs[0]), hoard.load("hoard/pendulum/mixed-v0")
    assert policy(data.obs[:3]).shape == (3, data.action_dim)


def test_example_of_a_suite_can_be_read(tmp_path):
    code = re.search(r"^```toml\n(.*?)^```", (DOCS / "extending.md").read_text(), re.M | re.S)
    assert code
    (tmp_path / "ideas").mkdir()
    (tmp_path / "ideas" / "my_iql.py").write_text((ROOT / "algos" / "iql.py").read_text())
    (tmp_path / "my_suite.toml").write_text(code[1])
    program = "from hoard.runners.sweep import suite; print(len(suite.read('my_suite.toml').cells()))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "14\n", done.stderr  # two methods on two datasets with three seeds, one on one with two


# --- the site ---


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for algorithm in ALGORITHMS:
        page = (tmp_path / "site" / "algorithms" / f"{algorithm}.html").read_text()
        assert "<math" in page
        assert hooks.OPTIONS not in page
        assert "<code>final_eval_episodes</code>" in page
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text()), page.name


def test_an_equation_that_cannot_be_drawn_is_refused():
    pytest.importorskip("latex2mathml")
    assert "<mfrac>" in hooks.draw_equations('<div class="arithmatex">\\[\\frac{a}{b}\\]</div>')
    with pytest.raises(ValueError, match="nosuchcommand"):
        hooks.draw_equations('<span class="arithmatex">\\(\\nosuchcommand{a}\\)</span>')


def test_options_are_read_with_group_default_choices_and_comment():
    source = (
        "class Config:\n"
        "    # --- data ---\n"
        "    mode: Literal['a', 'b'] = 'a'  # which # one\n"
        "    # --- more ---\n"
        "    sizes: tuple[int, ...] = (\n        1,\n    )  # widths\n"
    )
    assert hooks.options_of(source) == [
        ("data", "mode", "a", "`a`, `b`: which # one"),
        ("more", "sizes", "(\n        1,\n    )", "widths"),
    ]


def test_links_out_of_the_site_become_text_or_lead_to_the_repository():
    page, uris = DOCS / "algorithms" / "iql.md", {ROOT / "experiments" / "README.md": "experiments/README.md"}
    others = "[web](https://example.org), [no](no.md)"
    text = f"[`iql.py`](../../algos/iql.py), [all](../../experiments/README.md#x), {others}"
    inside = f"[all](../experiments/README.md#x), {others}"
    assert hooks.relink(text, page, "algorithms/iql.md", uris, None) == f"`iql.py`, {inside}"
    linked = hooks.relink(text, page, "algorithms/iql.md", uris, "https://example.org/hoard/")
    assert linked == f"[`iql.py`](https://example.org/hoard/blob/HEAD/algos/iql.py), {inside}"

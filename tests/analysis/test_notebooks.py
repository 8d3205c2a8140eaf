"""The notebook runs on any suite folder, shows its tables and figures, and carries nothing of the machine."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import nbformat
from nbclient.exceptions import CellExecutionError

from hoard.analysis import notebooks
from hoard.analysis.notebooks import execute

NOTEBOOKS = sorted(Path(execute.__file__).parent.glob("*.ipynb"))
NOTEBOOK = Path(execute.__file__).with_name("compare.ipynb")


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.timeout(300)
def test_compare_executes_on_an_archive(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("HOARD_RESULTS", str(archive))
    copy = Path(shutil.copy(NOTEBOOK, tmp_path / "compare.ipynb"))
    execute.execute(copy, copy)
    notebook = nbformat.read(copy, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == nbformat.read(NOTEBOOK, as_version=4).metadata

    outputs = outputs_of(notebook)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = copy.read_text()
    for expected in ("all 3 datasets", "Student t", "is not finite", "target=0.5", "suite quick: 45 runs"):
        assert expected in text
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert str(tmp_path) not in text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("source", ["print(6 * 7)", "raise RuntimeError('stop here')"])
def test_check_writes_nothing_and_tells_of_errors(source, tmp_path):
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    before = path.read_bytes()
    if "raise" in source:
        with pytest.raises(CellExecutionError, match="stop here"):
            execute.execute(path)
    else:
        assert outputs_of(execute.execute(path))[0]["text"] == "42\n"
    assert path.read_bytes() == before


def test_the_notebooks_are_there():
    assert {path.stem for path in NOTEBOOKS} == {
        "compare", "learning_curves", "datasets", "tuning_budgets", "fork_and_compare", "hybrid",
    }  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_clean_and_keeps_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [output for output in outputs_of(notebook) if output.get("name") == "stderr" or "ename" in output]
    assert "execution" not in {key for cell in notebook.cells for key in cell.metadata}
    assert all(cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code")
    assert str(Path(execute.__file__).resolve().parents[2]) not in path.read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_executes_without_torch(path, tmp_path, monkeypatch):
    monkeypatch.delenv("HOARD_RESULTS", raising=False)
    copy = Path(shutil.copy(path, tmp_path / path.name))
    notebook = nbformat.read(copy, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import sys\nassert 'torch' not in sys.modules"))
    nbformat.write(notebook, copy)
    execute.execute(copy)


class TestCommand:
    """Executing leaves the tracked notebook as it is unless asked."""

    @pytest.fixture
    def small(self, tmp_path, monkeypatch):
        path = tmp_path / "notebooks" / "small.ipynb"
        path.parent.mkdir()
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")]), path)
        monkeypatch.setattr(execute, "HERE", path.parent)
        monkeypatch.chdir(tmp_path)
        return path

    @pytest.mark.parametrize(
        ("options", "written"),
        [([], "results/notebooks/small.ipynb"), (["--output", "mine"], "mine/small.ipynb"), (["--check"], None)],
    )
    def test_not_in_place(self, small, tmp_path, options, written):
        before = small.read_bytes()
        execute.main(options)
        assert small.read_bytes() == before
        found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.ipynb") if path != small]
        assert found == ([written] if written else [])
        assert all("42" in Path(path).read_text() for path in found)

    def test_in_place_if_asked(self, small):
        execute.main(["--in-place"])
        assert "42" in small.read_text()


class TestFindResults:
    def test_default_is_the_committed_experiment(self, monkeypatch):
        monkeypatch.delenv("HOARD_RESULTS", raising=False)
        assert (notebooks.find_results() / "cells.json").is_file()

    def test_a_relative_path_counts_from_here_or_from_the_checkout(self, monkeypatch, tmp_path):
        (tmp_path / "mine").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOARD_RESULTS", "mine")
        assert notebooks.find_results() == (tmp_path / "mine").resolve()
        monkeypatch.setenv("HOARD_RESULTS", "experiments/stitch")
        assert (notebooks.find_results() / "cells.json").is_file()

    def test_what_was_looked_for_is_named(self, monkeypatch):
        monkeypatch.setenv("HOARD_RESULTS", "no/such/folder")
        with pytest.raises(FileNotFoundError, match=r"looked for .*no/such/folder and .*set HOARD_RESULTS"):
            notebooks.find_results()

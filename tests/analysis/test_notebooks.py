"""The notebook runs on any suite folder, shows its tables and figures, and carries nothing of the machine."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import nbformat
from nbclient.exceptions import CellExecutionError

from hoard.analysis.notebooks import execute

NOTEBOOK = Path(execute.__file__).with_name("compare.ipynb")


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.timeout(300)
def test_compare_executes_on_an_archive(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("HOARD_RESULTS", str(archive))
    copy = Path(shutil.copy(NOTEBOOK, tmp_path / "compare.ipynb"))
    execute.execute(copy)
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
            execute.execute(path, check=True)
    else:
        assert outputs_of(execute.execute(path, check=True))[0]["text"] == "42\n"
    assert path.read_bytes() == before


def test_committed_notebook_is_clean():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [output for output in outputs_of(notebook) if output.get("name") == "stderr" or "ename" in output]
    assert "execution" not in {key for cell in notebook.cells for key in cell.metadata}

"""Help texts show what can be typed."""

from __future__ import annotations

import pytest

from hoard.cli import main
from hoard.runners import algorithms


def help_of(capsys, *args):
    with pytest.raises(SystemExit) as end:
        main([*args, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_train_lists_every_algorithm_with_its_presets(capsys):
    """Read from the files without importing them, and the same as the files themselves hold."""
    lines = [line.split(maxsplit=1) for line in help_of(capsys, "train").splitlines()]
    for name in algorithms.available():
        presets = algorithms.import_file(algorithms.find(name)).PRESETS
        assert [name, ", ".join(presets)] in lines


@pytest.mark.parametrize("action", [[], ["list"], ["make"], ["info"], ["check"], ["versions"]])
def test_data_commands_show_an_example(capsys, action):
    examples = help_of(capsys, "data", *action).split("example")[1].splitlines()[1:]
    assert examples
    assert all(line.startswith(f"  hoard data {' '.join(action)}") for line in examples)


def test_a_report_that_cannot_be_written_is_one_line(capsys, monkeypatch, tmp_path):
    from hoard.analysis import report

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "build", full)
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path)])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "No space left on device" in err

"""`hoard data`: what goes to stdout, what to stderr, and the exit status."""

import json
import shutil

import h5py
import pytest

from hoard import datasets
from hoard.cli import main


@pytest.fixture
def hoard(capsys):
    """Run the command in this process: (exit status, stdout, stderr)."""

    def call(*args):
        with pytest.raises(SystemExit) as end:
            main(["data", *map(str, args)])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.fixture
def broken(tiny, tmp_path, monkeypatch):
    """A copy of the tiny pendulum set whose rewards belong to the step before."""
    from hoard.datasets.minari.store import path_of

    source = path_of(tiny)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    shutil.copytree(source, path_of(tiny))
    with h5py.File(path_of(tiny) / "data" / "main_data.hdf5", "a") as file:
        for group in file.values():
            group["rewards"][1:] = group["rewards"][:-1]
    return tiny


def test_list(hoard, tiny):
    status, out, _ = hoard("list")
    assert status == 0
    lines = out.splitlines()
    assert any(line.split() == [tiny, "on", "disk"] for line in lines)
    assert "hoard/pointmaze/stitch-v0" in [line.split()[0] for line in lines]
    rows = [json.loads(line) for line in hoard("list", "--json")[1].splitlines()]
    assert {"id": tiny, "on_disk": True} in rows
    assert [row["id"] for row in rows] == [line.split()[0] for line in lines]


def test_list_keeps_the_longest_id_apart(hoard, monkeypatch):
    monkeypatch.setattr(datasets, "is_at_hand", lambda dataset_id: True)
    lines = hoard("list")[1].splitlines()
    assert [line.split()[0] for line in lines] == datasets.known_ids()


def test_make(hoard, tiny):
    assert hoard("make", tiny) == (0, f"{tiny}: at hand\n", "")


def test_info_is_a_card_for_people_or_for_machines(hoard, tiny):
    status, out, err = hoard("info", tiny)
    assert (status, err) == (0, "")
    for part in (tiny, "2,000 in 10 episodes", "TQ ", "saturation", "coverage", "episodes by return", "Pendulum-v1"):
        assert part in out
    content = json.loads(hoard("info", tiny, "--json")[1])
    assert (content["id"], content["episodes"], content["coverage"]["bins"]) == (tiny, 10, 10)
    assert content["sha256"] in out


def test_several_ids_give_one_json_line_each(hoard, tiny):
    lines = hoard("info", tiny, tiny, "--json", "--bins", "5")[1].splitlines()
    assert [json.loads(line)["coverage"]["bins"] for line in lines] == [5, 5]


def test_coverage_relative_to_a_dataset(hoard, tiny):
    assert json.loads(hoard("info", tiny, "--reference", tiny, "--json")[1])["coverage"]["saco"] == 1
    assert "1.000, relative to " in hoard("info", tiny, "--reference", tiny)[1]


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figure(hoard, tiny, tmp_path, suffix, magic):
    file = tmp_path / f"card.{suffix}"
    assert hoard("info", tiny, "--figure", file)[0] == 0
    assert file.read_bytes().startswith(magic)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info", "{tiny}", "{tiny}", "--figure", "x.png"], "give one id"),
        (["info", "{tiny}", "--figure", "x.bmp"], "must end in .png, .pdf or .svg"),
        (["info", "{tiny}", "--figure", "no/such/folder/x.png"], "there is no folder no/such/folder"),
        (["info", "{tiny}", "--bins", "0"], "bins must lie in 1..255"),
        (["info", "{tiny}", "--bins", "many"], "invalid int value"),
        (["info", "{tiny}", "--figur", "x.png"], "unrecognized arguments"),
        (["info", "{tiny}", "--reference", "hoard/pendulum/mixd-v0"], "hoard/pendulum/mixed-v0"),
        (["check", "{tiny}", "--sample", "0"], "--sample must be at least 1"),
        (["check", "hoard/pointmaze/stich-v0"], "nearest: hoard/pointmaze/stitch-v0"),
        (["versions", "Hopper-v4", "--sample", "0"], "--sample must be at least 1"),
        (["versions", "Hopper-v4", "Swimmer-v4"], "Swimmer-v4: there are recordings of Hopper-v4"),
        (["versions", "{tiny}"], "Pendulum-v1 cannot be replayed in other versions"),
        (["make", "d4rl:hoper-medium-v2"], "d4rl:hopper-medium-v2"),
        (["info", "not an id"], "nearest: "),
        (["forget", "{tiny}"], "invalid choice"),
        (["check"], "required: id"),
    ],
)
def test_wrong_requests(hoard, tiny, args, message):
    status, out, err = hoard(*(arg.format(tiny=tiny) for arg in args))
    assert (status, out) == (2, "")
    assert message in err


def test_check_prints_one_line_for_each_question(hoard, tiny):
    status, out, _ = hoard("check", tiny)
    assert status == 0
    first, *lines, last = out.splitlines()
    assert (first, last) == (tiny, "  12 ok, 0 failed, 0 skipped")
    assert [line.split()[0] for line in lines] == ["ok"] * 12


def test_a_failed_check_is_exit_status_1(hoard, broken):
    status, out, _ = hoard("check", broken)
    assert status == 1
    assert [line.split()[1] for line in out.splitlines() if line.startswith("  failed ")] == ["replay"]
    content = json.loads(hoard("check", broken, "--json", "--sample", "50")[1])
    assert (content["failed"], content["ok"]) == (1, 11)
    assert "50 replayed steps differ" in content["findings"][-1]["text"]


def test_versions_is_one_table_or_one_json_line_for_each_id(hoard):
    status, out, _ = hoard("versions", "Hopper-v4", "HalfCheetah-v5", "--sample", "30")
    assert status == 0
    assert len(out.splitlines()) == 2 + 2 * 4
    lines = hoard("versions", "Hopper-v4", "HalfCheetah-v5", "--sample", "30", "--seed", "2", "--json")[1].splitlines()
    contents = [json.loads(line) for line in lines]
    assert [content["id"] for content in contents] == ["Hopper-v4", "HalfCheetah-v5"]
    assert contents[0]["replays"][0]["steps"] == 30

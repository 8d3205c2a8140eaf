"""Downloads from a server on this machine: whole, resumed, refused; the cache holds whole files or none."""

import contextlib
import hashlib
import http.server
import io
import os
import re
import threading
from dataclasses import replace

import h5py
import numpy as np
import pytest

from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.d4rl import source, table
from hoard.datasets.d4rl.download import url_of

NAME = "hopper-random-v2"
ID = f"d4rl:{NAME}"
FILE = "hopper_random-v2.hdf5"


def payload():
    rng = np.random.default_rng(0)
    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        file["observations"] = rng.normal(size=(500, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (500, 3)).astype(np.float32)
        file["rewards"] = rng.normal(size=500).astype(np.float32)
        file["terminals"] = np.arange(500) % 100 == 99
        file["timeouts"] = np.zeros(500, bool)
    return out.getvalue()


BYTES = payload()


class Server:
    """Gives `body` for D4RL's path; `cut` bytes an answer at most; remembers the Range of each request."""

    def __init__(self):
        self.body, self.cut, self.ranges, self.status, self.understands_ranges = BYTES, None, [], 200, True
        self.wrong_range = self.without_length = False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def answer(self, request):
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.status != 200 or request.path != "/" + table.ENTRIES[NAME].path:
            return request.send_error(self.status if self.status != 200 else 404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.understands_ranges else 0
        if start >= len(self.body):
            return request.send_error(416)
        part = self.body[start:]
        request.send_response(206 if start else 200)
        if start:
            told = 0 if self.wrong_range else start
            request.send_header("Content-Range", f"bytes {told}-{len(self.body) - 1}/{len(self.body)}")
        if not self.without_length:
            request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        request.wfile.write(part[: self.cut])
        if self.cut is not None and self.cut < len(part):
            request.close_connection = True

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    out = Server()
    monkeypatch.setattr(table, "BASE_URL", out.url)
    monkeypatch.setenv("no_proxy", "*")
    known = replace(table.ENTRIES[NAME], size=len(BYTES), sha256=hashlib.sha256(BYTES).hexdigest())
    monkeypatch.setitem(table.ENTRIES, NAME, known)
    monkeypatch.setitem(table.BY_FILE, FILE, known)
    yield out
    out.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "d4rl"  # D4RL_DATASET_DIR, set for all tests here


def unknown_hash(monkeypatch):
    monkeypatch.setitem(table.ENTRIES, NAME, replace(table.ENTRIES[NAME], size=0, sha256=""))


def refused(folder, *messages):
    """Loading fails; the message says what, and where to put the file by hand; no file is installed."""
    with pytest.raises(DatasetError) as caught:
        datasets.load(ID)
    text = str(caught.value)
    assert text.startswith(ID)
    for message in messages:
        assert re.search(message, text), text
    assert f"fetch {table.BASE_URL}gym_mujoco_v2/{FILE} by hand and put it into {folder} as {FILE}" in text
    assert "D4RL_DATASET_DIR" in text
    assert not (folder / FILE).exists()
    return text


def test_a_name_is_fetched_once_and_loads(server, folder):
    seen = []
    assert datasets.progress_unit(ID) == "bytes"
    assert datasets.ensure(ID, lambda done, total: seen.append((done, total))) is True
    assert (seen[0], seen[-1]) == ((0, len(BYTES)), (len(BYTES), len(BYTES)))
    assert (folder / FILE).read_bytes() == BYTES
    assert not list(folder.glob("*.part"))
    assert datasets.ensure(ID) is False
    assert len(datasets.load(ID)) == 499
    assert len(server.ranges) == 1
    assert url_of(table.ENTRIES[NAME]) == server.url + "gym_mujoco_v2/hopper_random-v2.hdf5"


def test_checking_an_id_fetches_nothing(server, folder):
    datasets.check_id(ID)
    assert server.ranges == []
    assert not folder.exists()
    assert source.is_at_hand(ID) is False


@pytest.mark.parametrize("have", [1, 100, len(BYTES) - 1])
def test_a_partial_file_is_resumed_by_range(server, folder, have):
    folder.mkdir()
    (folder / f"{FILE}.part").write_bytes(BYTES[:have])
    datasets.ensure(ID)
    assert server.ranges == [f"bytes={have}-"]
    assert (folder / FILE).read_bytes() == BYTES


def test_a_complete_partial_file_needs_no_network(server, folder):
    folder.mkdir()
    (folder / f"{FILE}.part").write_bytes(BYTES)
    datasets.ensure(ID)
    assert server.ranges == []
    assert (folder / FILE).read_bytes() == BYTES


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, folder):
    server.cut = len(BYTES) // 3
    datasets.ensure(ID)
    assert server.ranges == [None, *(f"bytes={k * server.cut}-" for k in (1, 2, 3)[: len(server.ranges) - 1])]
    assert (folder / FILE).read_bytes() == BYTES


def test_what_has_come_is_kept_and_the_next_call_goes_on(server, folder):
    server.cut = 1000
    text = refused(folder, "cannot download it")
    part = folder / f"{FILE}.part"
    assert part.read_bytes() == BYTES[: part.stat().st_size]
    assert f"{part.stat().st_size:,} bytes are kept and will be resumed" in text
    server.cut = None
    kept = part.stat().st_size
    datasets.ensure(ID)
    assert server.ranges[-1] == f"bytes={kept}-"
    assert (folder / FILE).read_bytes() == BYTES


def test_a_server_that_knows_no_ranges_starts_anew(server, folder):
    server.understands_ranges = False
    folder.mkdir()
    (folder / f"{FILE}.part").write_bytes(b"x" * 500)
    datasets.ensure(ID)
    assert (folder / FILE).read_bytes() == BYTES


def test_a_server_that_answers_another_range_is_not_believed(server, folder):
    server.wrong_range = True
    folder.mkdir()
    (folder / f"{FILE}.part").write_bytes(BYTES[:500])
    refused(folder, "answered a request for bytes 500-")
    assert (folder / f"{FILE}.part").read_bytes() == BYTES[:500]


def test_a_partial_file_that_is_too_long_starts_anew(server, folder, monkeypatch):
    folder.mkdir()
    for known in (True, False):
        (folder / f"{FILE}.part").write_bytes(b"x" * (len(BYTES) + 10))
        if not known:
            unknown_hash(monkeypatch)
        datasets.ensure(ID)
        assert (folder / FILE).read_bytes() == BYTES
        (folder / FILE).unlink()


def test_wrong_bytes_are_put_aside_and_never_installed(server, folder):
    server.body = BYTES[:-1] + bytes([BYTES[-1] ^ 1])
    refused(folder, "has SHA-256 .* instead of", "put aside as hopper_random-v2.hdf5.rejected")
    assert (folder / f"{FILE}.rejected").read_bytes() == server.body
    server.body = BYTES
    datasets.ensure(ID)  # not resumed from the wrong bytes
    assert server.ranges == [None, None]
    assert (folder / FILE).read_bytes() == BYTES


def test_a_wrong_length_is_put_aside(server, folder):
    server.body = BYTES + b"more"
    refused(folder, f"has {len(BYTES) + 4:,} bytes instead of {len(BYTES):,}")


def test_a_page_in_place_of_a_file(server, folder, monkeypatch):
    unknown_hash(monkeypatch)
    server.body = b"<html>please log in</html>"
    refused(folder, "is no HDF5 file")


def test_without_a_length_and_a_known_hash_the_file_still_comes(server, folder, monkeypatch):
    unknown_hash(monkeypatch)
    server.without_length = True
    datasets.ensure(ID)
    assert (folder / FILE).read_bytes() == BYTES


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_that_refuses(server, folder, status):
    server.status = status
    refused(folder, rf"answered {status} ")
    assert not list(folder.glob("*.part"))


def test_no_network(server, folder, monkeypatch):
    server.close()
    refused(folder, "cannot download it", "[Rr]efused")
    monkeypatch.setattr(table, "BASE_URL", "http://no-such-host.invalid/")
    refused(folder, "cannot download it")
    server.__init__()  # so that the fixture can close it


def test_an_answer_that_is_no_http(server, folder, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk():
            with contextlib.suppress(OSError):
                for _ in range(4):
                    connection, _ = listener.accept()
                    connection.recv(10_000)
                    connection.sendall(b"garbage\r\n\r\n")
                    connection.close()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        monkeypatch.setattr(table, "BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        refused(folder, "cannot download it")


def test_a_file_in_place_of_the_folder(server, folder):
    folder.write_text("not a folder")
    with pytest.raises(DatasetError, match=r"cannot write to .*by hand"):
        datasets.ensure(ID)
    assert folder.read_text() == "not a folder"


def test_a_file_put_there_by_hand_is_found_without_network(server, folder):
    folder.mkdir()
    (folder / FILE).write_bytes(BYTES)
    assert datasets.ensure(ID) is False
    assert len(datasets.load(ID)) == 499
    assert server.ranges == []


def test_two_at_once_fetch_once(server, folder):
    results = []
    threads = [threading.Thread(target=lambda: results.append(datasets.ensure(ID))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert True in results
    assert len(server.ranges) == 1
    assert (folder / FILE).read_bytes() == BYTES


def test_a_read_only_folder_with_the_file_is_enough(server, folder, monkeypatch):
    folder.mkdir()
    (folder / FILE).write_bytes(BYTES)

    def refuse(*_):
        raise PermissionError(13, "not allowed")

    monkeypatch.setattr(os, "replace", refuse)  # root may write anywhere, so the refusal is played
    assert len(datasets.load(ID)) == 499
    assert not (folder / f".{FILE}.verified").exists()


@pytest.mark.filterwarnings("ignore:.*loaded but not trained on")
def test_kitchens_uncertain_hash_is_told_not_refused(server, folder):
    path = folder / "kitchen_microwave_kettle_light_slider-v0.hdf5"
    folder.mkdir()
    path.write_bytes(BYTES)
    for _ in range(2):  # each time: what is not certain is not remembered
        with pytest.warns(UserWarning, match="a secondary source says 57bfd9c5"):
            assert len(datasets.load("d4rl:kitchen-partial-v0")) == 499

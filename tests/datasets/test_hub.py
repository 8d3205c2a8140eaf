"""Where the hub is out of reach, or has no such dataset, one question is asked and the answer comes at once."""

import http.server
import logging
import threading
import time

import minari
import pytest
from huggingface_hub import HfApi

from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.minari import hub

ask_hub = hub.ask_hub  # before the fixture of this folder replaces it


@pytest.fixture
def asks(monkeypatch):
    """Let the hub be at an address; Minari's own download must not be reached."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    monkeypatch.setattr(hub, "ask_hub", ask_hub)
    monkeypatch.setattr(minari, "download_dataset", lambda _: pytest.fail("went on to download"))
    return lambda address: monkeypatch.setattr(hub, "HfApi", lambda: HfApi(endpoint=address))


def test_no_network(asks, caplog):
    asks("http://127.0.0.1:9")
    start = time.monotonic()
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(DatasetError, match="the Minari hub did not give it") as caught,
    ):
        datasets.load("D4RL/dor/human-v2")
    assert time.monotonic() - start < 60  # the hub's library retries for minutes where it is let
    assert "run `minari download D4RL/dor/human-v2`" in str(caught.value)
    assert "Nearest ids at hand" in str(caught.value)
    assert not caplog.records  # nothing about retries


ASKED = []


class NotFound(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ASKED.append(self.path)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_name_that_the_hub_has_not(asks):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asks(f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(DatasetError, match="there is no farama-minari/D4LR on the hub"):
        datasets.load("D4LR/door/human-v2")
    server.shutdown()
    server.server_close()
    assert ASKED == ["/api/datasets/farama-minari/D4LR"]


def test_a_remote_of_another_kind_is_left_to_minari(asks, monkeypatch):
    asks("http://127.0.0.1:9")
    monkeypatch.setenv("MINARI_REMOTE", "gcp://somewhere")
    hub.ask_hub("x-v0")

import pytest


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty folder of Minari datasets for each test; the user's own is never touched."""
    folder = tmp_path / "minari"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture(autouse=True)
def _no_question_to_the_hub(monkeypatch):
    """Where a test plays the hub by replacing `minari.download_dataset`, nothing else may need a network."""
    from hoard.datasets.minari import hub

    monkeypatch.setattr(hub, "ask_hub", lambda dataset_id: None)

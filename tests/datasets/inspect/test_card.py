"""Data cards: numbers against values worked out by hand, text, figure."""

import dataclasses
import io
import json

import numpy as np
import pytest
from dataset_toys import ACTIONS, SPACES, store, tagged_buffers, toy
from gymnasium import spaces

from hoard import datasets
from hoard.datasets import DatasetError, discrete
from hoard.datasets.inspect import card
from hoard.datasets.minari.metadata import metadata_of


def actions_at(*values):
    return np.array(values, np.float32)


def test_sizes_returns_lengths_and_ends():
    # Rewards 0..7 in episodes of 3, 1 and 4 steps: returns 3, 3 and 22.
    content = card.describe(toy(terminated=(1,)))
    assert (content["transitions"], content["episodes"]) == (8, 3)
    assert content["returns"]["mean"] == pytest.approx(28 / 3)
    assert (content["returns"]["min"], content["returns"]["median"], content["returns"]["max"]) == (3, 3, 22)
    assert (content["lengths"]["min"], content["lengths"]["max"]) == (1, 4)
    assert content["lengths"]["mean"] == pytest.approx(8 / 3)
    assert content["ends"] == {"terminated": 1, "truncated": 2, "both": 0, "neither": 0}
    assert content["reward"]["nonzero_share"] == 7 / 8
    assert sum(content["returns"]["histogram"]["counts"]) == 3


def test_trajectory_quality_is_the_share_between_random_and_expert():
    assert card.describe(toy(ref_min=-1.0, ref_max=28 / 3))["trajectory_quality"] == pytest.approx(1.0)
    assert card.describe(toy(ref_min=28 / 3, ref_max=50.0))["trajectory_quality"] == pytest.approx(0.0)
    assert card.describe(toy(ref_min=0.0, ref_max=56 / 3))["trajectory_quality"] == pytest.approx(0.5)
    assert card.describe(toy(ref_min=None, ref_max=None))["trajectory_quality"] is None


def test_saturation_counts_entries_and_steps_at_either_bound():
    action = actions_at([1, 0], [-1, 1], [0.5, 0], [0.99995, 0.999], [0, 0], [0, 0], [0, 0], [0, 0])
    saturation = card.describe(toy(action=action))["action"]["saturation"]
    assert saturation == {"entries": 4 / 16, "steps": 3 / 8, "columns": [3 / 8, 1 / 8]}
    unbounded = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert card.describe(toy(actions=unbounded))["action"]["saturation"] is None


def scattered(states, actions, **fields):
    """One episode that visits these states (a last one added) with these actions."""
    states, actions = np.array(states, np.float32), np.array(actions, np.float32)
    table = np.vstack([states, states[-1:]])
    return toy(lengths=(len(states),), observations=table, action=actions, **fields)


def test_coverage_counts_distinct_cells():
    # Two columns of 0..1 in 2 cells each, actions in one column cell: pairs (cell of s, cell of a).
    states = [[0, 0], [0.1, 0.2], [0.9, 0.2], [1, 1], [0.6, 0.7]]
    actions = [[-1, 0], [-0.9, 0], [-1, 0], [1, 0], [1, 0]]
    coverage = card.describe(scattered(states, actions), bins=2)["coverage"]
    assert coverage["states"] == 3  # (0, 0), (1, 0), (1, 1)
    assert coverage["state_actions"] == 3
    assert coverage["share"] == 3 / 5
    assert card.describe(scattered(states, actions), bins=1)["coverage"]["state_actions"] == 1
    fine = card.describe(scattered(states, actions), bins=100)["coverage"]
    assert (fine["states"], fine["state_actions"]) == (5, 5)


def test_coverage_agrees_with_a_set_of_tuples():
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(500, 2)).astype(np.float32), rng.uniform(-1, 1, (500, 2)).astype(np.float32)
    got = card.describe(scattered(states, actions), bins=4)["coverage"]
    cells = []
    for columns in (states, actions):
        low, high = columns.min(axis=0), columns.max(axis=0)
        cells.append([[min(int(4 * (v - a) / (b - a)), 3) for v, a, b in zip(row, low, high)] for row in columns])
    assert got["states"] == len({tuple(s) for s in cells[0]})
    assert got["state_actions"] == len({(*s, *a) for s, a in zip(*cells)})


def test_saco_is_relative_to_the_reference_on_one_common_grid():
    wide = scattered([[0, 0], [1, 1], [2, 2], [3, 3]], np.zeros((4, 2)))
    narrow = scattered([[0, 0], [0.1, 0.1], [0.2, 0.2], [0.3, 0.3]], np.zeros((4, 2)), id="narrow-v0")
    coverage = card.describe(narrow, reference=wide, bins=4)["coverage"]
    assert coverage["saco"] == 1 / 4  # its own grid would make it 4 / 4
    assert coverage["reference"] == {"id": "toy-v0", "state_actions": 4, "transitions": 4}
    assert card.describe(wide, reference=narrow, bins=4)["coverage"]["saco"] == 4
    assert card.describe(wide, reference=wide)["coverage"]["saco"] == 1
    with pytest.raises(DatasetError, match="cannot be compared"):
        card.describe(wide, reference=toy(obs_dim=3))


@pytest.mark.parametrize("bins", [0, -1, 256])
def test_bins_outside_a_byte_are_refused(bins):
    with pytest.raises(DatasetError, match=rf"bins must lie in 1..255, got {bins}"):
        card.describe(toy(), bins=bins)


def test_the_card_is_json_and_the_text_says_what_matters():
    content = card.describe(toy(terminated=(1,)))
    assert json.loads(json.dumps(content)) == content
    text = card.as_text(content)
    for part in (
        "8 in 3 episodes",
        "TQ 0.933",
        "1 terminated, 2 truncated",
        "needs a reference dataset",
        "Pendulum-v1",
    ):
        assert part in text
    assert content["sha256"] in text
    bars = text[text.index("episodes by return") :].splitlines()
    assert bars[1].split() == ["3", "..", "4.583", "#" * 40, "2"]


def test_one_bar_where_all_values_are_equal():
    content = card.describe(toy(lengths=(2, 2), reward=np.ones(4, np.float32)))
    assert content["returns"]["histogram"] == {"edges": [2.0, 2.0], "counts": [2]}


def test_text_parts_that_were_left_out_are_named():
    space = spaces.Dict({"mission": spaces.Text(3, charset="ab"), "place": spaces.Discrete(2)})
    obs = {"mission": ["a", "b"], "place": np.array([0, 1])}
    store("toys/text-v0", [dataclasses.replace(tagged_buffers([1])[0], observations=obs)], space)
    metadata = metadata_of("toys/text-v0")
    content = card.describe(datasets.load("toys/text-v0"), metadata)
    assert content["observation"]["left_out"] == ["mission"]
    assert "{mission: Text, place: Discrete(2)}; left out: mission" in card.as_text(content)


def test_discrete_actions_are_described_as_such():
    data = toy(actions=discrete.OneHot(spaces.Discrete(3)))
    content = card.describe(data)
    assert content["action"]["space"] == "one-hot of Discrete(3)"
    assert content["action"]["saturation"] is None
    card.as_text(content)


@pytest.mark.parametrize(
    "data",
    [
        toy(),
        toy(lengths=(1,), ref_min=None, ref_max=None, env_spec=None),
        toy(actions=discrete.OneHot(spaces.Discrete(3))),
        toy(actions=spaces.Box(-1.0, 1.0, (9,), np.float32), obs_dim=5),
    ],
    ids=["plain", "one step", "discrete", "wide"],
)
def test_a_figure_of_any_dataset(data):
    sink = io.BytesIO()
    drawn = card.figure(data, card.describe(data))
    drawn.savefig(sink, format="png")
    assert sink.getvalue().startswith(b"\x89PNG")
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles[:2] == ["returns", "episode lengths"]
    assert "where the states are" in titles


def test_a_figure_leaves_global_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    card.figure(toy(), card.describe(toy()))
    assert dict(matplotlib.rcParams) == before


def test_an_unknown_environment_and_algorithm_are_said_to_be_unknown():
    store("toys/plain-v0", tagged_buffers([2, 3]), SPACES["float64"], ACTIONS)
    text = card.as_text(card.describe(datasets.load("toys/plain-v0"), metadata_of("toys/plain-v0")))
    assert "no known environment" in text
    assert "no reference returns, hence no score" in text

"""Scaling of actions: exact on the unit box, and its own inverse on any other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hoard.datasets.actions import ActionScaler

bounds = st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(0.125, 100, width=32)), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(bounds, st.integers(0, 2**31))
def test_bounds_map_to_one_and_back(pairs, seed):
    low = np.array([low for low, _ in pairs], np.float32)
    high = low + np.array([width for _, width in pairs], np.float32)
    scaler = ActionScaler(low, high)
    assert scaler.center.dtype == scaler.half_range.dtype == torch.float32
    assert torch.equal(scaler.center, (torch.tensor(high) + torch.tensor(low)) / 2)
    assert torch.equal(scaler.half_range, (torch.tensor(high) - torch.tensor(low)) / 2)
    span = float(np.abs(np.stack([low, high])).max() / (high - low).min())
    room = 1e-6 * (1 + span)
    np.testing.assert_allclose(scaler.to_unit(torch.tensor(low)), -1, atol=room)
    np.testing.assert_allclose(scaler.to_unit(torch.tensor(high)), 1, atol=room)
    unit = torch.rand(2, 3, len(low), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    assert scaler.to_env(unit).shape == unit.shape
    np.testing.assert_allclose(scaler.to_unit(scaler.to_env(unit)), unit, atol=room)


def test_the_unit_box_is_left_alone_to_the_bit():
    action = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    scaler = ActionScaler(-np.ones(3, np.float32), np.ones(3, np.float32))
    assert scaler.to_unit(action).numpy().tobytes() == action.numpy().tobytes()
    assert torch.equal(scaler.to_env(action), action)


@pytest.mark.parametrize(("low", "high"), [(-np.inf, 1.0), (-1.0, np.inf), (1.0, 1.0), (2.0, 1.0), (np.nan, 1.0)])
def test_bounds_without_a_range_are_refused(low, high):
    with pytest.raises(ValueError, match="finite, low < high"):
        ActionScaler(np.array([-1.0, low]), np.array([1.0, high]))

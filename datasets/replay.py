"""One replay buffer: starts from a dataset, grows online, samples uniformly, in sequences, or at a set ratio.

All tensors live on the training device and every draw uses the generator that the caller hands in. The observation
table of the dataset is shared by s and s' (see `Dataset`); online steps add two rows each, so they need no episode
bookkeeping. The dataset part is never overwritten; the online part is a ring.

Actions are in [-1, 1] in a buffer, whatever the environment's bounds are: the dataset's are converted when the buffer
is made, online ones come so from the runner. Rewards are stored scaled and shifted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoard.datasets.actions import ActionScaler
from hoard.datasets.dataset import Dataset

Batch = dict[str, Tensor]


class ReplayBuffer:
    """Transitions on `device`.

    Sampled fields, batch B: `obs`, `next_obs` (B, obs_dim), `action` (B, action_dim), `reward`, `terminated` (B,) f32,
    plus one (B,) entry for each name in `extra` (per-transition numbers of the dataset, such as returns-to-go).
    `online_capacity` steps may be added; beyond it the oldest online step is overwritten.

    `scale_actions` maps the dataset's actions from their bounds to [-1, 1] (False: they stay in environment units);
    without a dataset there is nothing to map. `clip_actions` c > 0 clamps all actions, added ones too, to
    [-1 + c, 1 - c], for policies that cannot reach the bounds. Rewards are stored as reward_scale * (r + reward_shift).

    A dataset with `weight` is drawn from by it. One with `blend` lambda needs `discount`: it is stored with reward
    r + discount * lambda * h(s'), h the discounted return to go of the stored rewards (0 behind an episode's end), and
    with `terminated` 1 - (1 - lambda) * (1 - terminated), so that discount * (1 - terminated) is HUBL's discount.

    Raises ValueError for a dataset with `blend` without `discount`, for an `extra` of the wrong length, or together
    with an online part (it has no values there), for bounds that are not finite where actions are to be scaled, and for
    a `clip_actions` outside [0, 1).
    """

    def __init__(
        self,
        dataset: Dataset | None,
        device: torch.device | str = "cpu",
        online_capacity: int = 0,
        obs_dim: int | None = None,
        action_dim: int | None = None,
        extra: dict[str, np.ndarray] | None = None,
        *,
        scale_actions: bool = True,
        clip_actions: float = 0.0,
        reward_scale: float = 1.0,
        reward_shift: float = 0.0,
        discount: float | None = None,
    ) -> None:
        if dataset is not None:
            obs_dim, action_dim = dataset.obs_dim, dataset.action_dim
        elif obs_dim is None or action_dim is None:
            raise ValueError("a buffer without a dataset needs obs_dim and action_dim")
        if extra and (online_capacity or dataset is None):
            raise ValueError("extra fields belong to the dataset; an online step has no value for them")
        if not 0 <= clip_actions < 1:
            raise ValueError(f"clip_actions {clip_actions} must lie in [0, 1)")
        self.device = torch.device(device)
        self.clip_actions, self.reward_scale, self.reward_shift = clip_actions, reward_scale, reward_shift
        self.offline_size = len(dataset) if dataset is not None else 0
        self.online_capacity = online_capacity
        self.online_size = 0
        self._cursor = 0  # next slot of the online ring
        self._online_t = 0  # steps since the start of the online episode being recorded
        # Online episodes continue the dataset's numbering.
        self._episode = dataset.num_episodes if dataset is not None else 0
        capacity = self.offline_size + online_capacity
        self._table_start = len(dataset.observations) if dataset is not None else 0

        def put(name: str, rows: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            """Room for `rows`, begun by the dataset's array of that name."""
            tensor = torch.zeros((rows, *shape), dtype=dtype, device=self.device)
            if dataset is not None:
                array = np.ascontiguousarray(getattr(dataset, name))
                tensor[: len(array)] = torch.as_tensor(array, device=self.device)
            return tensor

        self.observations = put("observations", self._table_start + 2 * online_capacity, obs_dim)
        self.rows = put("rows", capacity, dtype=torch.int64)
        # Slot k of the online part owns table rows 2k and 2k+1 behind the dataset's.
        self.rows[self.offline_size :] = self._table_start + 2 * torch.arange(online_capacity, device=self.device)
        self.action = put("action", capacity, action_dim)
        self.reward = put("reward", capacity)
        if dataset is not None:
            stored = self.action[: self.offline_size]
            if scale_actions:
                space = dataset.action_space
                stored = ActionScaler(space.low, space.high, self.device).to_unit(stored)
            self.action[: self.offline_size] = self._clipped(stored)
            self.reward[: self.offline_size] = reward_scale * (self.reward[: self.offline_size] + reward_shift)
        self.terminated = put("terminated", capacity)
        if dataset is not None and dataset.blend is not None:
            self._blend(dataset, discount)
        # Of the dataset's transitions, the last one's being their number: where in it a uniform draw falls.
        self._cumulative: Tensor | None = None
        if dataset is not None and dataset.weight is not None:
            cumulative = np.cumsum(dataset.weight) * (self.offline_size / dataset.weight.sum())
            self._cumulative = torch.as_tensor(cumulative, device=self.device)
        self.episode = put("episode_index", capacity, dtype=torch.int64)
        self.episode[self.offline_size :] = -1  # an empty slot
        self.timestep = put("timestep", capacity, dtype=torch.int64)
        self.extra: dict[str, Tensor] = {}
        for name, values in (extra or {}).items():
            if len(values) != self.offline_size:
                raise ValueError(f"extra '{name}' has {len(values)} values for {self.offline_size} transitions")
            self.extra[name] = torch.as_tensor(np.array(values, np.float32), device=self.device)

    def _blend(self, dataset: Dataset, discount: float | None) -> None:
        """Store HUBL's rewards and discounts for the dataset's part, see the class."""
        if discount is None:
            raise ValueError(
                f"{dataset.id}: data hubl: this algorithm bootstraps no value, so nothing can be blended in"
            )
        assert dataset.blend is not None
        n = self.offline_size
        reward = self.reward[:n].cpu().numpy()
        to_go = replace(dataset, reward=reward, blend=None).returns_to_go(discount)
        following = np.append(to_go[1:], 0.0)
        following[dataset.starts[1:] - 1] = 0.0
        blended = reward + discount * dataset.blend * following
        self.reward[:n] = torch.as_tensor(blended.astype(np.float32), device=self.device)
        kept = torch.as_tensor((1 - dataset.blend).astype(np.float32), device=self.device)
        self.terminated[:n] = 1 - kept * (1 - self.terminated[:n])

    def __len__(self) -> int:
        return self.offline_size + self.online_size

    def add(self, obs: Any, action: Any, reward: float, next_obs: Any, terminated: bool, truncated: bool) -> None:
        """Record one online step: `action` in [-1, 1], `reward` as the environment pays it.

        `terminated` masks bootstrapping; either flag ends the episode.
        """
        if self.online_capacity == 0:
            raise ValueError("this buffer has no room for online steps: give online_capacity")
        slot = self.offline_size + self._cursor
        row = self._table_start + 2 * self._cursor
        self.observations[row] = torch.as_tensor(obs, dtype=torch.float32)
        self.observations[row + 1] = torch.as_tensor(next_obs, dtype=torch.float32)
        self.action[slot] = self._clipped(torch.as_tensor(action, dtype=torch.float32))
        self.reward[slot] = self.reward_scale * (float(reward) + self.reward_shift)
        self.terminated[slot] = float(terminated)
        self.episode[slot] = self._episode
        self.timestep[slot] = self._online_t
        self._online_t += 1
        if terminated or truncated:
            self._episode += 1
            self._online_t = 0
        self._cursor = (self._cursor + 1) % self.online_capacity
        self.online_size = min(self.online_size + 1, self.online_capacity)

    def _clipped(self, action: Tensor) -> Tensor:
        c = self.clip_actions
        return action.clamp(-1 + c, 1 - c) if c else action

    def obs_stats(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (obs_dim,) of s_t over the transitions stored so far; empty slots do not count.

        Raises ValueError for an empty buffer.
        """
        if not len(self):
            raise ValueError("an empty buffer has no statistics")
        table = self.observations[self.rows[: len(self)]]
        return table.mean(dim=0), table.std(dim=0, unbiased=False)

    # --- sampling ---

    def draw(self, batch_size: int, generator: torch.Generator, offline_ratio: float | None = None) -> Tensor:
        """Indices (B,) with replacement; `offline_ratio` fixes how many come from the dataset, exactly.

        Without a ratio the draw is uniform over everything stored. A dataset with weights is drawn from by them; they
        have mean 1, so that an online step counts as much as an average one of the dataset. Raises ValueError for a
        ratio outside [0, 1] or when a part that must supply transitions is empty.
        """
        if offline_ratio is None:
            if not len(self):
                raise ValueError("cannot sample: the buffer is empty")
            return self._draw_offline(len(self), batch_size, generator)
        if not 0 <= offline_ratio <= 1:
            raise ValueError(f"offline_ratio {offline_ratio} must lie in [0, 1]")
        offline = round(offline_ratio * batch_size)
        for part, size, wanted in (
            ("offline", self.offline_size, offline),
            ("online", self.online_size, batch_size - offline),
        ):
            if wanted and not size:
                raise ValueError(f"offline_ratio {offline_ratio} asks for {wanted} {part} transitions; there are none")
        parts = []
        if offline:
            parts.append(self._draw_offline(self.offline_size, offline, generator))
        if offline < batch_size:
            parts.append(self.offline_size + self._randint(self.online_size, batch_size - offline, generator))
        return torch.cat(parts)

    def sample(self, batch_size: int, generator: torch.Generator, offline_ratio: float | None = None) -> Batch:
        """A batch of transitions; see `draw` for how they are chosen."""
        return self.gather(self.draw(batch_size, generator, offline_ratio))

    def gather(self, index: Tensor) -> Batch:
        """The transitions at `index` (...,): every field gets that leading shape."""
        at = index.reshape(-1)
        rows = self.rows.index_select(0, at)
        flat = {
            "obs": self.observations.index_select(0, rows),
            "action": self.action.index_select(0, at),
            "reward": self.reward.index_select(0, at),
            "next_obs": self.observations.index_select(0, rows + 1),
            "terminated": self.terminated.index_select(0, at),
        }
        flat.update({name: values.index_select(0, at) for name, values in self.extra.items()})
        return {name: values.reshape(*index.shape, *values.shape[1:]) for name, values in flat.items()}

    def sample_sequences(
        self, batch_size: int, length: int, generator: torch.Generator, offline_ratio: float | None = None
    ) -> Batch:
        """Windows (B, length, ...) that start at a uniformly drawn transition and stop at its episode's end.

        Right padded with zeros; `mask` (B, length) is 1 on real steps, `timestep` (B, length) counts from the episode's
        start. No window crosses an episode, nor the seam of the online ring.
        """
        first = self.draw(batch_size, generator, offline_ratio)
        index = first[:, None] + torch.arange(length, device=self.device)
        inside = index < len(self)
        index = torch.where(inside, index, first[:, None])
        # Same episode and counting on: behind the ring's write position the slots belong to older steps.
        steps = torch.arange(length, device=self.device)
        counts_on = self.timestep[index] == self.timestep[first][:, None] + steps
        inside &= (self.episode[index] == self.episode[first][:, None]) & counts_on
        index = torch.where(inside, index, first[:, None])
        batch = self.gather(index) | {"timestep": self.timestep[index]}
        for name, values in batch.items():
            batch[name] = torch.where(inside.reshape(*inside.shape, *[1] * (values.ndim - 2)), values, 0)
        batch["mask"] = inside.float()
        return batch

    def _draw_offline(self, high: int, count: int, generator: torch.Generator) -> Tensor:
        """Indices below `high`, which is at least the dataset's size; its part by weight, if it has weights."""
        if self._cumulative is None:
            return self._randint(high, count, generator)
        drawn = high * torch.rand(count, generator=generator, device=self.device, dtype=torch.float64)
        offline = torch.searchsorted(self._cumulative, drawn, right=True).clamp(max=self.offline_size - 1)
        return torch.where(drawn < self.offline_size, offline, drawn.long().clamp(max=high - 1))

    def _randint(self, high: int, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(high, (count,), generator=generator, device=self.device)

    # --- resume ---

    _ONLINE = ("action", "reward", "terminated", "episode", "timestep")
    _COUNTERS = ("online_size", "_cursor", "_episode", "_online_t")
    _SIZES = ("offline_size", "online_capacity")

    def state_dict(self) -> dict[str, Any]:
        """What the dataset does not already hold: the online part and its counters."""
        state: dict[str, Any] = {name: getattr(self, name) for name in (*self._SIZES, *self._COUNTERS)}
        for name in self._ONLINE:
            state[name] = getattr(self, name)[self.offline_size : len(self)].clone()
        state["observations"] = self.observations[self._table_start : self._table_start + 2 * self.online_size].clone()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError if it comes from a buffer of other sizes."""
        for name in self._SIZES:  # slots are numbered by them
            if state[name] != getattr(self, name):
                raise ValueError(f"the state has {name} {state[name]}, this buffer {getattr(self, name)}")
        for name in self._COUNTERS:
            setattr(self, name, state[name])
        for name in self._ONLINE:
            getattr(self, name)[self.offline_size : len(self)] = state[name].to(self.device)
        rows = 2 * self.online_size
        self.observations[self._table_start : self._table_start + rows] = state["observations"].to(self.device)

"""d3rlpy's side of `peers.py`: `python d3rlpy_iql.py SECONDS OBS ACTION WIDTH BATCH`, where d3rlpy is installed.

Prints milliseconds of CPU time of one update of IQL, batch at hand: the best of turns of a tenth of a second.
"""

import itertools
import sys

import d3rlpy
import torch
from d3rlpy.models.encoders import VectorEncoderFactory
from d3rlpy.torch_utility import TorchMiniBatch
from turns import best_turn


def main(seconds: float, obs_dim: int, action_dim: int, width: int, size: int) -> float:
    torch.set_num_threads(1)
    encoder = VectorEncoderFactory(hidden_units=[width, width])
    config = d3rlpy.algos.IQLConfig(
        batch_size=size, actor_encoder_factory=encoder, critic_encoder_factory=encoder, value_encoder_factory=encoder
    )
    algo = config.create(device=False)
    algo.create_impl((obs_dim,), action_dim)
    generator = torch.Generator().manual_seed(0)
    obs, next_obs = (torch.randn(size, obs_dim, generator=generator) for _ in range(2))
    action, next_action = (2 * torch.rand(size, action_dim, generator=generator) - 1 for _ in range(2))
    reward, zeros = torch.randn(size, 1, generator=generator), torch.zeros(size, 1)
    batch = TorchMiniBatch(
        observations=obs, actions=action, rewards=reward, next_observations=next_obs, next_actions=next_action,
        returns_to_go=zeros, terminals=zeros, intervals=torch.ones(size, 1), device="cpu",
    )  # fmt: skip
    steps = itertools.count()
    return best_turn(lambda: algo.impl.update(batch, next(steps)), seconds)


if __name__ == "__main__":
    print(main(float(sys.argv[1]), *map(int, sys.argv[2:])))

"""d3rlpy's side of `d3rlpy_peer.py`: `python d3rlpy_train.py FOLDER`, with an interpreter that has d3rlpy 2.8.1.

Trains on the folder's data.npz with the settings of told.json and leaves the policy after every `eval_every` updates as
UPDATE.npz. Observations are standardised; IQL's rewards are scaled by 1000 / (range of the returns), as its paper does.
"""

import json
import sys
from pathlib import Path

import d3rlpy
import numpy as np
import torch
from d3rlpy.models.encoders import VectorEncoderFactory


def main(folder: Path) -> None:
    told, data = json.loads((folder / "told.json").read_text()), dict(np.load(folder / "data.npz"))
    torch.set_num_threads(told["threads"])
    d3rlpy.seed(told["seed"])
    truncated = data["truncated"] & ~data["terminated"]
    dataset = d3rlpy.dataset.MDPDataset(
        data["obs"], data["action"], data["reward"][:, None], data["terminated"].astype(float), truncated.astype(float),
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
    )  # fmt: skip
    encoder = VectorEncoderFactory(hidden_units=told["hidden"])
    mean, std = data["obs"].mean(axis=0), data["obs"].std(axis=0) + 1e-3
    scaler = d3rlpy.preprocessing.StandardObservationScaler(mean=mean, std=std, eps=0.0)
    common = {"batch_size": told["batch_size"], "observation_scaler": scaler}
    if told["method"] == "bc":
        config = d3rlpy.algos.BCConfig(learning_rate=told["lr"], encoder_factory=encoder, **common)
    else:
        ends = np.flatnonzero(data["terminated"] | data["truncated"]) + 1
        returns = [part.sum() for part in np.split(data["reward"], ends[:-1])]
        reward_scaler = d3rlpy.preprocessing.ReturnBasedRewardScaler(
            return_max=float(max(returns)), return_min=float(min(returns)), multiplier=1000.0
        )
        config = d3rlpy.algos.IQLConfig(
            actor_learning_rate=told["lr"], critic_learning_rate=told["lr"], actor_encoder_factory=encoder,
            critic_encoder_factory=encoder, value_encoder_factory=encoder, gamma=told["discount"],
            tau=told["target_tau"], expectile=told["expectile"], weight_temp=told["beta"],
            max_weight=told["max_weight"], reward_scaler=reward_scaler, **common,
        )  # fmt: skip
    algo = config.create(device=False)

    def keep(algo: object, epoch: int, step: int) -> None:
        modules = algo.impl.modules
        policy = modules.imitator if told["method"] == "bc" else modules.policy
        linears = [layer for layer in policy.modules() if isinstance(layer, torch.nn.Linear)]
        out = {"mean": mean, "std": std}
        for k, layer in enumerate(linears):
            out |= {f"weight{k}": layer.weight.detach().numpy(), f"bias{k}": layer.bias.detach().numpy()}
        np.savez(folder / f"{step}.npz", **out)

    algo.fit(
        dataset, n_steps=told["updates"], n_steps_per_epoch=told["eval_every"], epoch_callback=keep,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(), show_progress=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))

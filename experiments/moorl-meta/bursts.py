"""What a burst of MOORL on one source does to the other: `python experiments/moorl-meta/bursts.py`.

Trains MOORL as `hoard train` does, with the settings of the suite `moorl-meta`, and looks on after every `--every`-th
burst: the critic's loss on the same transitions of each source before the burst (the meta-weights), after it (where its
K steps led) and after the outer update, all against the same targets, and the cosine between the displacement of this
burst and that of the last one on the other source, for critic and actor. Reptile's argument is that a step along
displacements of both sources favours weights whose gradients on them agree: cosines near zero, or a loss of the other
source that rises with every burst, speak against it. Nothing of the training changes: the probe draws from a generator
of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from hoard.records.errors import BAD_INPUT, BadInput
from hoard.records.files import write_atomic
from hoard.runners import algorithms
from hoard.runners.entry import execute
from hoard.runners.nn import frozen_copy
from hoard.runners.options import Options, build
from hoard.runners.sweep.suite import read, select

OFFLINE_RATIO = {"offline": 1.0, "online": 0.0}


class Probe:
    """Rows of one run, one for each burst that was looked at."""

    def __init__(self, moorl: Any, cfg: Any, every: int, rows: list[dict[str, Any]]) -> None:
        self._moorl, self._cfg, self._every, self._rows = moorl, cfg, every, rows
        self._generator = torch.Generator().manual_seed(cfg.seed)
        self._bursts = 0
        self._moves: dict[str, dict[str, Tensor]] = {}  # of the last burst on each source: network -> displacement

    def begin(self, objects: dict[str, Any]) -> None:
        """What `train` registered."""
        self._now, self._target, self._meta = objects["networks"], objects["target"], objects["meta"]
        self._buffer = objects["buffer"]
        self._keep()

    def _keep(self) -> None:
        self._before = {name: frozen_copy(self._meta[name]) for name in ("actor", "critic")}

    def look(self, metrics: dict[str, Tensor], env_step: int) -> None:
        """After a burst, whose source is the one that its metrics name."""
        source = next(name for name in OFFLINE_RATIO if f"values/q_{name}" in metrics)
        other = "online" if source == "offline" else "offline"
        moves = {name: flat(self._now[name]) - flat(net) for name, net in self._before.items()}
        self._bursts += 1
        ready = self._buffer.online_size >= self._cfg.batch_size
        if ready and self._bursts % self._every == 0:
            row = {"seed": self._cfg.seed, "env_step": env_step, "source": source}
            for name, of in (("own", source), ("other", other)):
                row |= {f"{name}_{when}": loss for when, loss in self._losses(OFFLINE_RATIO[of]).items()}
            for name, last in self._moves.get(other, {}).items():
                row[f"cosine_{name}"] = float(torch.cosine_similarity(moves[name], last, dim=0))
            self._rows.append(row)
        self._moves[source] = moves
        self._keep()

    @torch.no_grad()
    def _losses(self, offline_ratio: float) -> dict[str, float]:
        """The critic's loss before the burst, after it and after the outer update, on the same transitions."""
        batch = self._buffer.sample(1024, self._generator, offline_ratio)
        batch = self._moorl.with_noise(batch, self._cfg, self._generator)
        actor, alpha = self._before["actor"], self._now["alpha"]()
        critics = {"before": self._before["critic"], "after": self._now["critic"], "meta": self._meta["critic"]}
        return {
            when: self._moorl.critic_loss(critic, self._target, actor, alpha, batch, self._cfg)[0].item()
            for when, critic in critics.items()
        }


def flat(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def probed(dataset: str, every: int, results: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    """The folder of a run of MOORL that was looked at; its rows are added to `rows`."""
    file = algorithms.find("moorl")
    moorl = algorithms.import_file(file)

    def train(cfg: Any, run: Any) -> None:
        probe = Probe(moorl, cfg, every, rows)
        register, log = run.register, run.log

        def register_and_begin(**objects: Any) -> None:
            register(**objects)
            probe.begin(objects)

        def log_and_look(metrics: dict[str, Tensor], updates: int = 1) -> None:
            log(metrics, updates)
            if "losses/critic" in metrics:  # a burst, and not the end of an episode
                probe.look(metrics, run.env_step)

        run.register, run.log = register_and_begin, log_and_look
        moorl.train(cfg, run)

    options = {"dataset": dataset, **options}
    parsed = build(moorl.Config, moorl.PRESETS, file.name, Options(results=results), options)
    if parsed.cfg.sampling != "burst":
        raise BadInput("sampling must be burst: else no burst has a source")
    return execute(parsed, train, file, file.read_text())


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each source: what the median burst on it does to its own loss and to the other's, and cosines.

    Changes are relative to the loss before the burst, first where it led, then after the outer update.
    """
    told = {}
    for source, group in rows.groupby("source"):
        row = {"bursts": len(group)}
        for name in ("own", "other"):
            before = group[f"{name}_before"]
            row[f"{name}, burst"] = (group[f"{name}_after"] / before - 1).median()
            row[f"{name}, outer"] = (group[f"{name}_meta"] / before - 1).median()
        row["other lower"] = (group["other_meta"] < group["other_before"]).mean()
        row |= {f"cosine, {name}": group[f"cosine_{name}"].mean() for name in ("critic", "actor")}
        told[source] = row
    return pd.DataFrame(told).T.rename_axis("burst on")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python experiments/moorl-meta/bursts.py", description="What a burst on one source does to the other."
    )
    parser.add_argument("--dataset", default="hoard/pointmaze/umaze-v0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eta-meta", type=float, default=0.5)
    parser.add_argument("--online-steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=20, help="bursts from one look to the next")
    parser.add_argument("--csv", type=Path, help="file for all rows")
    given = parser.parse_args(arguments)
    changed = {"eta_meta": given.eta_meta, "online_steps": given.online_steps}
    rows: list[dict[str, Any]] = []
    try:
        (cell,) = select(read("moorl-meta"), ["burst_eta05"], [given.dataset], "1", changed).cells()
        with tempfile.TemporaryDirectory() as scratch:
            for seed in given.seeds:
                probed(given.dataset, given.every, Path(scratch), rows, seed=seed, **cell.options)
    except BadInput as error:
        parser.exit(BAD_INPUT, f"error: {error}\n")
    found = pd.DataFrame(rows)
    if given.csv:
        write_atomic(given.csv, lambda scratch: found.to_csv(scratch, index=False))
    print(summary(found).round(3).to_string())


if __name__ == "__main__":
    main()

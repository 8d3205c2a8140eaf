"""Configs of algorithm files: as JSON and back, and the checks that all of them share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from hoard.datasets import plugins
from hoard.records.errors import BadInput
from hoard.records.folder import PACKED


class RunConfig(Protocol):
    """The fields of an algorithm's Config that the runner itself reads."""

    dataset: str
    seed: int
    device: str
    threads: int
    updates: int
    log_every: int
    eval_every: int
    eval_episodes: int
    final_eval_episodes: int
    checkpoint_every: int


# What options of these names must satisfy, whatever the algorithm: one name, one unit, one range.
_AT_LEAST_1 = (
    "threads", "log_every", "eval_every", "eval_episodes", "final_eval_episodes", "checkpoint_every", "batch_size",
    "context", "width", "blocks", "heads", "time_rows", "updates_per_step",
)  # fmt: skip
_NOT_NEGATIVE = ("seed", "updates", "online_steps", "start_steps", "weight_decay", "warmup", "return_scale")
_POSITIVE = ("lr", "init_alpha", "clip_norm")
_SHARES = ("discount", "target_tau", "offline_ratio", "gae_lambda")
_BELOW_1 = ("dropout", "actor_dropout")


def check(cfg: Any) -> None:
    """Raise BadInput for a value that makes no sense, naming option and range.

    Shared options are checked by their names; then the Config's own `check` method, if it has one, looks at the rest.
    """

    def refuse(name: str, what: str) -> None:
        raise BadInput(f"{name} {getattr(cfg, name)}: must be {what}")

    fields = {field.name for field in dataclasses.fields(cfg)}
    given = {name for name in fields if getattr(cfg, name) is not None}
    for name in given:
        value = getattr(cfg, name)
        if isinstance(value, float) and value != value:
            refuse(name, "a number")
        if name in _AT_LEAST_1 and value < 1:
            refuse(name, "at least 1")
        if name in _NOT_NEGATIVE and value < 0:
            refuse(name, "0 or more")
        if name in _POSITIVE and not 0 < value < float("inf"):
            refuse(name, "above 0")
        if name in _SHARES and not 0 <= value <= 1:
            refuse(name, "between 0 and 1")
        if name in _BELOW_1 and not 0 <= value < 1:
            refuse(name, "at least 0 and below 1")
        if (name == "hidden" or name.endswith("_hidden")) and min(value, default=1) < 1:
            refuse(name, "widths of at least 1")
    if getattr(cfg, "compile", False):
        check_compiler(cfg.device)
    plugins.parse(getattr(cfg, "data", "all"))
    if cfg.updates == 0 and not getattr(cfg, "online_steps", 0):
        refuse("updates", "at least 1" + (" where online_steps is 0" if "online_steps" in fields else ""))
    if hasattr(cfg, "check"):
        try:
            cfg.check()
        except ValueError as error:
            raise BadInput(str(error)) from error


def packable(cfg: Any) -> bool:
    """Whether seeds with these options can be packed: their updates draw nothing, as `compile` asks it too."""
    if getattr(cfg, "compile", None) is not False:
        return False
    try:
        traced = dataclasses.replace(cfg, compile=True)
        if hasattr(traced, "check"):
            traced.check()
    except ValueError:
        return False
    return True


def check_compiler(device: str) -> None:
    """Raise BadInput if torch.compile cannot work here: it needs PyTorch 2.11 and, on CPU, a C++ compiler."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise BadInput(
            f"compile: torch {torch.__version__} cannot trace backward passes; upgrade it, or use compile false"
        )
    if resolve_device(device) != "cpu":
        return
    from torch._inductor import cpp_builder, exc  # slow to import, and seldom needed

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise BadInput(
            "compile: no C++ compiler found; install g++ or clang++, or set CXX, or use compile false"
        ) from error


def resolve_device(name: str) -> str:
    """`auto` means CUDA if there is one. Raises BadInput for a device torch cannot use here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return name


def plain(cfg: Any) -> dict[str, Any]:
    """A Config as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def resolved(cfg: Any) -> dict[str, Any]:
    """A Config as JSON values, the device resolved: what a run's address covers."""
    return plain(cfg) | {"device": resolve_device(cfg.device)}


def departures(cfg: Any, config: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved config departs from the defaults of its file, but for what every run has of its own."""
    defaults = plain(type(cfg)())
    return {k: v for k, v in config.items() if v != defaults[k] and k not in ("dataset", "seed", "device")}


def from_plain(config_type: type, values: Mapping[str, Any]) -> Any:
    """The Config behind JSON values: lists become tuples again."""
    return config_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != PACKED})

"""Search spaces: declared by algorithm files, checked against their Configs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from helpers import ROOT

from hoard.records.errors import BadInput
from hoard.runners.algorithms import available, import_file
from hoard.runners.space import PROTOCOL, search_space


@pytest.mark.parametrize("name", available())
def test_every_algorithm_file_declares_a_space_that_its_config_takes(name):
    module = import_file(ROOT / "algos" / f"{name}.py")
    space = search_space(module, f"{name}.py")
    assert space
    assert json.loads(json.dumps(space)) == space
    fields = {field.name for field in dataclasses.fields(module.Config)}
    assert set(space) <= fields - set(PROTOCOL)


@dataclass
class Config:
    """Options of every type."""

    dataset: str = "test/pendulum-v0"
    seed: int = 0
    updates: int = 100
    lr: float = 1e-3
    discount: float = 0.99
    critics: int = 2
    reward_scale: float | None = None
    hidden: tuple[int, ...] = (16,)
    layer_norm: bool = False
    output: Literal["tanh", "gaussian"] = "tanh"

    def check(self) -> None:
        """Raise ValueError for more than 10 critics."""
        if self.critics > 10:
            raise ValueError(f"critics {self.critics}: at most 10")


def space_of(search: Any) -> dict[str, list[Any]]:
    return search_space(SimpleNamespace(Config=Config, SEARCH=search), "mine.py")


def test_ranges_and_choices_of_every_type():
    search = {
        "lr": ("log", 1e-4, 1),
        "discount": ("uniform", 0.9, 1),
        "reward_scale": ("log", 0.1, 10.0),
        "critics": ("int", 2, 10),
        "hidden": ("choice", [(16,), (16, 16)]),
        "layer_norm": ("choice", [True, False]),
        "output": ["choice", ["tanh", "gaussian"]],
    }
    space = space_of(search)
    assert space["lr"] == ["log", 1e-4, 1]
    assert space["hidden"] == ["choice", [[16], [16, 16]]]
    assert list(space) == list(search)
    assert space_of({"reward_scale": ("choice", [None, 1.0])}) == {"reward_scale": ["choice", [None, 1.0]]}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (None, "mine.py declares no search space; end it with SEARCH"),
        ({}, "declares no search space"),
        ([("lr", "log", 1e-4, 1)], "declares no search space"),
        ({"lrr": ("log", 1e-4, 1)}, "no option 'lrr'; nearest: lr"),
        ({"seed": ("int", 0, 3)}, r"SEARCH\['seed'\]: belongs to the protocol"),
        ({"updates": ("int", 10, 300)}, r"SEARCH\['updates'\]: belongs to the protocol"),
        ({"lr": 1e-3}, "must begin with its kind, one of log, uniform, int, choice, not 0.001"),
        ({"lr": ()}, "must begin with its kind"),
        ({"lr": ("logarithmic", 1e-4, 1)}, "must begin with its kind"),
        ({"lr": ("log", 1e-4)}, r"'log' needs two numbers, the smallest and the largest, not \[0.0001\]"),
        ({"lr": ("log", "1e-4", 1)}, "needs two numbers"),
        ({"lr": ("log", True, 3.0)}, "needs two numbers"),
        ({"lr": ("log", 1e-2, 1e-4)}, "the smallest must be below the largest, both above 0"),
        ({"lr": ("log", 0.0, 1.0)}, "the smallest must be below the largest, both above 0"),
        ({"discount": ("uniform", 0.9, 0.9)}, "the smallest must be below the largest; not"),
        ({"discount": ("uniform", float("nan"), 0.9)}, "the smallest must be below the largest"),
        ({"discount": ("uniform", 0.9, 1.1)}, r"SEARCH\['discount'\]: discount 1.1: must be between 0 and 1"),
        ({"critics": ("int", 2, 20)}, r"SEARCH\['critics'\]: critics 20: at most 10"),
        ({"critics": ("int", 2.0, 4.0)}, "'int' needs whole numbers"),
        ({"critics": ("uniform", 2, 4)}, "'uniform' gives no value of that option; take 'int' or 'choice'"),
        ({"output": ("int", 2, 4)}, "'int' gives no value of that option; take 'choice'"),
        ({"layer_norm": ("int", 0, 1)}, "'int' gives no value of that option; take 'choice'"),
        ({"output": ("choice", ["tanh", "relu"])}, "'relu' is no value of that option"),
        ({"critics": ("choice", [2, True])}, "True is no value of that option"),
        ({"hidden": ("choice", [16, 32])}, "16 is no value of that option"),
        ({"hidden": ("choice", [(16,), (0,)])}, "hidden .*widths of at least 1"),
        ({"lr": ("choice", [1e-3])}, "a choice needs one list of at least two values"),
        ({"lr": ("choice", 1e-3, 1e-4)}, "a choice needs one list of at least two values"),
        ({"lr": ("choice", [1e-3, 1e-3])}, "0.001 stands there twice"),
    ],
    ids=str,
)
def test_what_is_no_space_is_refused(search, message):
    with pytest.raises(BadInput, match=message):
        space_of(search)

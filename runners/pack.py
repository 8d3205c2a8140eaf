"""Several seeds of one method in one process, their updates made as one.

Each seed trains in a thread of its own: its own run, generators, batches and networks. At an update the threads wait
for one another. The last to come makes the updates of all as a single one, written for one seed and mapped over a
leading dimension (`torch.vmap`): weight k of all seeds' networks lies in one tensor (K, ...), of which each seed's own
weight is a view. So checkpoints, evaluations and the optimisers' states stay each seed's own, and a seed's rows are
those of the same run alone, within rounding.

An algorithm file has nothing to do for it beyond what `compile` asks: its update draws nothing, and `compiled` wraps
it. Seeds whose updates differ just then (another function, another shape or number) are updated apart from one another,
and one that is behind, as after a kill, catches up before the others go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.utils._pytree import tree_flatten, tree_unflatten

from hoard.runners.adam import fused_adam, is_plain_fused_adam, optimizer_step

R = TypeVar("R")
_PLAIN = (int, float, str, tuple, type(None))

_here = threading.local()  # .member: the seed that this thread trains; .stack: what is mapped in it right now


def member() -> Member | None:
    """The member of a pack that this thread is, if it is one."""
    return getattr(_here, "member", None)


def at_work() -> Stack | None:
    """The stacked update that is being made in this thread, if there is one."""
    return getattr(_here, "stack", None)


class Pack:
    """Threads that make their updates together, at most `size` of them.

    An update is always made for `size` seeds, for copies of one where they are fewer: how a number is rounded depends
    on the size of what is computed at once, and a run that is killed in company may go on alone.
    """

    def __init__(self, size: int) -> None:
        self._changed = threading.Condition()
        self._members: list[Member] = []
        self._calls: dict[Member, _Call] = {}
        self._busy = False
        self._bases = _Bases(size)

    def join(self, position: Callable[[Member], tuple[int, ...]]) -> Member:
        """A new member, to be entered (`with`) by its thread. All must have joined before the first update.

        `position` tells how far a member's training is; those at the smallest position are updated first.
        """
        joined = Member(self, position)
        self._members.append(joined)
        return joined

    def leave(self, gone: Member) -> None:
        """Nobody waits for this member any longer."""
        with self._changed:
            self._members.remove(gone)
            self._changed.notify_all()

    def call(self, call: _Call) -> Any:
        """Make this member's update together with those of the others, and return what it returns."""
        with self._changed:
            self._calls[call.member] = call
            self._changed.notify_all()
            while not call.done:
                if self._busy or len(self._calls) < len(self._members):
                    self._changed.wait()
                    continue
                self._busy = True
                behind = min(waiting.position for waiting in self._calls.values())
                now = [waiting for waiting in self._calls.values() if waiting.position == behind]
                for waiting in now:
                    del self._calls[waiting.member]
                self._changed.release()
                try:
                    for group in _alike(now):
                        self._update(group)
                finally:
                    self._changed.acquire()
                    self._busy = False
                    self._changed.notify_all()
        if call.error is not None:
            raise call.error
        return call.result

    def _update(self, group: list[_Call]) -> None:
        # In the order of joining, whoever came last: so the same seed is the same slice.
        group.sort(key=lambda call: call.member.number)
        try:
            results = Stack(group, self._bases).run()
            for call, result in zip(group, results, strict=True):
                call.result = result
        except Exception as error:
            for call in group:
                call.error = error
        for call in group:
            call.done = True


class Member:
    """One thread of a pack, while it is entered."""

    def __init__(self, pack: Pack, position: Callable[[Member], tuple[int, ...]]) -> None:
        self.pack, self.position = pack, position
        self.number = len(pack._members)

    def stacked(self, update: Callable[..., R], optimizers: Sequence[torch.optim.Optimizer]) -> Callable[..., R]:
        """`update`, made together with that of the other members. It draws nothing at random."""
        parts = _Parts(update)

        def step(*args: Any, **kwargs: Any) -> R:
            return self.pack.call(_Call(self, update, optimizers, parts, args, kwargs))

        return step

    def __enter__(self) -> Member:
        _here.member = self
        return self

    def __exit__(self, *_: object) -> None:
        _here.member = None
        self.pack.leave(self)


class _Call:
    """An update that a member asks for."""

    def __init__(
        self,
        caller: Member,
        update: Callable[..., Any],
        optimizers: Sequence[torch.optim.Optimizer],
        parts: _Parts,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.member, self.update, self.optimizers, self.parts = caller, update, optimizers, parts
        self.leaves, self.tree = tree_flatten((args, kwargs))
        self.position = caller.position(caller)
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None

    def kind(self) -> tuple[Any, ...]:
        """What updates must share to be made as one: the lines, the shapes, and all that is no tensor."""
        given = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        given += self.parts.numbers()
        return (self.update.__code__, self.tree, self.parts.settings, *given)


def _alike(calls: Sequence[_Call]) -> Iterator[list[_Call]]:
    groups: list[tuple[tuple[Any, ...], list[_Call]]] = []
    for call in calls:
        kind = call.kind()
        for other, group in groups:
            if other == kind:
                group.append(call)
                break
        else:
            groups.append((kind, [call]))
    return (group for _, group in groups)


# --- what an update works with ---


@dataclasses.dataclass
class _Place:
    """Where a tensor or number stands that an update reads: `get` it, `put` another in its place for a while."""

    get: Callable[[], Any]
    put: Callable[[Any], None]


class _Parts:
    """The tensors behind an update, and the numbers, found in its closure: in the same order for the same lines."""

    def __init__(self, update: Callable[..., Any]) -> None:
        self.places: list[_Place] = []
        self.settings: list[Any] = []  # of the Config, which no training changes
        self._numbers: list[Callable[[], Any]] = []
        self._seen: set[int] = set()
        self._function(update)

    def tensors(self) -> list[Tensor]:
        return [place.get() for place in self.places]

    def numbers(self) -> list[Any]:
        return [number() for number in self._numbers]

    def _function(self, function: Any) -> None:
        if isinstance(function, functools.partial):
            self._thing(function.func, None)
            for value in function.args:
                self._thing(value, None, "in a partial")
            return
        if (owner := getattr(function, "__self__", None)) is not None:
            self._thing(owner, None)
            function = function.__func__
        for cell in getattr(function, "__closure__", None) or ():
            try:
                content = cell.cell_contents
            except ValueError:  # assigned later, or never
                continue
            here = functools.partial(getattr, cell, "cell_contents"), functools.partial(setattr, cell, "cell_contents")
            self._thing(content, _Place(*here))

    def _thing(self, thing: Any, place: _Place | None, where: str = "") -> None:
        if isinstance(thing, _PLAIN) and not isinstance(thing, tuple):
            if place is not None:
                self._numbers.append(place.get)
            return
        if isinstance(thing, Tensor):
            if place is None:
                raise TypeError(f"a pack cannot stack a tensor that stands {where}")
            self.places.append(place)
            return
        if id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        if isinstance(thing, nn.Module):
            for module in thing.modules():
                for table in (module._parameters, module._buffers):
                    self._thing(table, None)
        elif isinstance(thing, dict | list):
            for key, value in thing.items() if isinstance(thing, dict) else enumerate(thing):
                get, put = functools.partial(thing.__getitem__, key), functools.partial(thing.__setitem__, key)
                self._thing(value, _Place(get, put))
        elif isinstance(thing, tuple):
            for value in thing:
                self._thing(value, None, "in a tuple")
        elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
            self.settings += [v for k, v in fields.items() if k != "seed" and isinstance(v, _PLAIN)]
        elif isinstance(thing, FunctionType | MethodType | functools.partial):
            self._function(thing)
        elif not isinstance(thing, torch.optim.Optimizer | type) and any(
            isinstance(held, Tensor | nn.Module) for held in getattr(thing, "__dict__", {}).values()
        ):
            raise TypeError(f"a pack cannot stack what a {type(thing).__name__} holds; make it a torch.nn.Module")


class _Base:
    """A stacked tensor (K, ...) and the tensors that are its views; where these are fewer, the first fills the rest."""

    def __init__(self, views: list[Tensor], size: int) -> None:
        self.views = views
        self.tensor = torch.stack([view.detach() for view in padded(views, size)])
        self.equal = views[0].dim() == 0 and bool((self.tensor == self.tensor[0]).all())
        for view, own in zip(views, self.tensor):
            view.data = own
        self._places = [view.data_ptr() for view in views]
        self.tensor.requires_grad_(views[0].requires_grad)

    def holds(self, views: Sequence[Tensor]) -> bool:
        """Whether it is still these that lie in it. They may have been in other company since."""
        if len(views) != len(self.views):
            return False
        known = zip(self.views, self._places, views)
        return all(own is view and view.data_ptr() == place for own, place, view in known)


class _Bases:
    """The stacked tensors of a pack."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._known: dict[int, _Base] = {}

    def of(self, views: Sequence[Tensor]) -> _Base:
        """That in which these lie one after the other; made when they first come together."""
        base = self._known.get(id(views[0]))
        if base is None or not base.holds(views):
            base = self._known[id(views[0])] = _Base(list(views), self.size)
        return base


def padded(things: Sequence[R], size: int) -> list[R]:
    """`size` things: these, and the first again and again."""
    return [*things, *[things[0]] * (size - len(things))]


# --- one update for all ---


class Stack:
    """Updates of several seeds that are made as one. `run` makes them."""

    def __init__(self, calls: Sequence[_Call], bases: _Bases) -> None:
        self._calls = calls
        self._places = calls[0].parts.places
        columns = list(zip(*(call.parts.tensors() for call in calls), strict=True))
        self._own = [column[0] for column in columns]
        self._bases = bases
        self._stacked = [bases.of(column).tensor for column in columns]
        self._base = {id(own): base for own, base in zip(self._own, self._stacked)}
        self._level = 0

    def run(self) -> list[Any]:
        """What each update returned, in the order of the calls."""
        first = self._calls[0]
        varying = [k for k, leaf in enumerate(first.leaves) if isinstance(leaf, Tensor)]
        batches = [torch.stack(padded([call.leaves[k] for call in self._calls], self._bases.size)) for k in varying]
        shape: list[Any] = []  # of what an update returns

        def one(stacked: list[Tensor], batch: list[Tensor]) -> list[Tensor]:
            leaves = list(first.leaves)
            for k, leaf in zip(varying, batch):
                leaves[k] = leaf
            args, kwargs = tree_unflatten(leaves, first.tree)
            self._level = _functorch.maybe_get_level(stacked[0])
            with self._in_place(stacked):
                told, tree = tree_flatten(first.update(*args, **kwargs))
            shape.append((tree, [None if isinstance(value, Tensor) else value for value in told]))
            return [value for value in told if isinstance(value, Tensor)]

        _here.stack = self
        try:
            mapped = torch.vmap(one)(self._stacked, batches)
        finally:
            _here.stack = None
        (tree, constants), results = shape[0], []
        told_all = list(zip(*(value.unbind() for value in mapped))) if mapped else [()] * len(self._calls)
        for seed in told_all[: len(self._calls)]:
            values = iter(seed)
            results.append(tree_unflatten([next(values) if c is None else c for c in constants], tree))
        return results

    @contextlib.contextmanager
    def _in_place(self, stacked: Sequence[Tensor]) -> Iterator[None]:
        """Let the first seed's networks work with these tensors."""
        for place, tensor in zip(self._places, stacked):
            place.put(tensor)
        try:
            yield
        finally:
            for place, own in zip(self._places, self._own):
                place.put(own)

    # What `hoard.runners.nn` asks, from inside of the mapped update. Tensors there are of one seed, here of all.

    def _all(self, tensor: Tensor) -> Tensor:
        """(...) of one seed -> (K, ...) of all."""
        if _functorch.is_batchedtensor(tensor):
            return _functorch.get_unwrapped(tensor).movedim(_functorch.maybe_get_bdim(tensor), 0)
        return tensor.expand(self._bases.size, *tensor.shape)

    def _one(self, tensor: Tensor) -> Tensor:
        """(K, ...) of all seeds -> (...) of one."""
        return _functorch._add_batch_dim(tensor, 0, self._level)

    def leaf(self, x: Tensor) -> Tensor:
        """A copy of `x` by which gradients can be taken."""
        everyone = self._all(x)
        with temporarily_pop_interpreter_stack():
            everyone = everyone.detach().clone().requires_grad_()
        return self._one(everyone)

    def gradient(self, loss: Tensor, tensors: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
        """torch.autograd.grad, each seed's loss by its own leaves `tensors`. The graph is kept."""
        everyone = self._all(loss).sum()
        sources = [_functorch.get_unwrapped(tensor) for tensor in tensors]
        with temporarily_pop_interpreter_stack():
            found = torch.autograd.grad(everyone, sources, create_graph=create_graph, retain_graph=True)
        return [self._one(gradient) for gradient in found]

    def gradients(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> list[Tensor | None]:
        """The gradients of `loss` by the optimiser's parameters; None for one it does not depend on."""
        parameters = [self._base[id(parameter)] for parameter in _parameters(optimizer)]
        everyone = self._all(loss).sum()
        with temporarily_pop_interpreter_stack():
            found = torch.autograd.grad(everyone, parameters, allow_unused=True)
        return [None if gradient is None else self._one(gradient) for gradient in found]

    def step(self, optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor | None]) -> None:
        """Step each seed's optimiser along its gradients, one for each parameter."""
        index = next(k for k, own in enumerate(self._calls[0].optimizers) if own is optimizer)
        optimizers = [call.optimizers[index] for call in self._calls]
        everyone = [None if gradient is None else self._all(gradient).contiguous() for gradient in gradients]
        with temporarily_pop_interpreter_stack(), torch.no_grad():
            if self._step_as_one(optimizers, everyone):
                return
            for k, one in enumerate(optimizers):
                for parameter, gradient in zip(_parameters(one), everyone, strict=True):
                    parameter.grad = None if gradient is None else gradient[k]
                optimizer_step(one)

    def _step_as_one(self, optimizers: Sequence[torch.optim.Optimizer], gradients: Sequence[Tensor | None]) -> bool:
        """One fused step of the stacked parameters; False, with nothing done, where the seeds' Adams are not alike."""
        rest, groups_of_all = iter(gradients), []
        for groups in zip(*(optimizer.param_groups for optimizer in optimizers)):
            moved = [
                (parameters, gradient)
                for parameters, gradient in zip(zip(*(group["params"] for group in groups)), rest)
                if gradient is not None
            ]
            of_seeds = zip(*(parameters for parameters, _ in moved)) if moved else [()] * len(groups)
            for optimizer, group, parameters in zip(optimizers, groups, of_seeds):
                if group["lr"] != groups[0]["lr"] or not is_plain_fused_adam(optimizer, group, parameters):
                    return False
            states = [
                {
                    key: self._bases.of([optimizer.state[p][key] for optimizer, p in zip(optimizers, parameters)])
                    for key in ("exp_avg", "exp_avg_sq", "step")
                }
                for parameters, _ in moved
            ]
            if not all(state["step"].equal for state in states):
                return False
            groups_of_all.append((groups[0], moved, states))
        for group, moved, states in groups_of_all:
            steps = [state["step"].tensor for state in states]  # (K,) each
            torch._foreach_add_(steps, 1)
            fused_adam(
                group,
                [self._base[id(parameters[0])] for parameters, _ in moved],
                [gradient for _, gradient in moved],
                [state["exp_avg"].tensor for state in states],
                [state["exp_avg_sq"].tensor for state in states],
                [step[0] for step in steps],
            )
        return True

    def lerp(self, targets: Sequence[Tensor], sources: Sequence[Tensor], share: float) -> None:
        """torch._foreach_lerp_, which cannot be mapped."""
        all_targets, all_sources = list(map(self._all, targets)), list(map(self._all, sources))
        with temporarily_pop_interpreter_stack():
            torch._foreach_lerp_(all_targets, all_sources, share)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

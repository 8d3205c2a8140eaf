"""Shared steps against the plain calls of PyTorch that they stand for, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hoard.runners.nn import clipped_gradient_step, frozen_copy, gradient_step, optimizer_step, polyak_update


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def groups(net: nn.Sequential) -> list[dict]:
    return [{"params": net[0].parameters(), "lr": 3e-3, "weight_decay": 0.1}, {"params": net[2].parameters()}]


OPTIMIZERS = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), lr=1e-2, fused=True),
    "decay": lambda net: torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=0.1, fused=True),
    "adamw": lambda net: torch.optim.AdamW(groups(net), lr=1e-2, eps=1e-6, fused=True),
    "amsgrad": lambda net: torch.optim.Adam(net.parameters(), lr=1e-2, amsgrad=True, fused=True),
    "plain": lambda net: torch.optim.Adam(net.parameters(), lr=1e-2),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_optimizer(name):
    """Ten steps with a changing step size, a state thrown away in between, and one network's gradients missing once."""
    mine, theirs = network(), network()
    ours, plain = OPTIMIZERS[name](mine), OPTIMIZERS[name](theirs)
    for k in range(10):
        for net, optimizer, step in ((mine, ours, optimizer_step), (theirs, plain, lambda o: o.step())):
            optimizer.param_groups[0]["lr"] = 1e-2 / (k + 1)
            if k == 6:
                optimizer.state.clear()
            optimizer.zero_grad()
            net(draw(16, 3, seed=k)).square().mean().backward()
            if k == 3:
                net[0].weight.grad = None
            step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters()))
    for a, b in zip(mine.parameters(), theirs.parameters()):
        assert all(torch.equal(ours.state[a][key], plain.state[b][key]) for key in plain.state[b])


def test_hooks_of_an_optimizer_are_called():
    net = network()
    optimizer, calls = OPTIMIZERS["adam"](net), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for _ in range(3):
        gradient_step(optimizer, net(draw(4, 3)).sum())
    assert len(calls) == 3


def test_a_step_moves_its_own_parameters_alone():
    first, second = network(0), network(1)
    before = copy.deepcopy(first.state_dict())
    optimizer = OPTIMIZERS["adam"](first)
    second_before = copy.deepcopy(second.state_dict())
    gradient_step(optimizer, (first(draw(4, 3)) * second(draw(4, 3))).sum())
    assert all(not torch.equal(before[k], v) for k, v in first.state_dict().items())
    assert all(torch.equal(second_before[k], v) for k, v in second.state_dict().items())
    assert all(parameter.grad is None for parameter in second.parameters())


def test_gradients_lie_in_memory_as_their_parameters_do():
    """Second derivatives of stacked weights come out transposed; a fused step would read them in the wrong order."""
    weight = nn.Parameter(draw(2, 3, 4))
    plain = nn.Parameter(weight.detach().clone())
    for parameter, ours in ((weight, True), (plain, False)):
        optimizer = torch.optim.Adam([parameter], lr=1e-2, fused=True)
        x = draw(2, 5, 3, seed=1).requires_grad_()
        (gradient,) = torch.autograd.grad(
            torch.baddbmm(draw(2, 1, 4), x, parameter).square().sum(), x, create_graph=True
        )
        loss = gradient.norm(dim=-1).sum()
        if ours:
            gradient_step(optimizer, loss)
        else:
            loss.backward()
            optimizer.step()
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()
    assert torch.equal(weight, plain)


@pytest.mark.parametrize("bound", [0.01, 1e6])
def test_a_clipped_step(bound):
    mine, theirs = network(), network()
    ours, plain = OPTIMIZERS["adamw"](mine), OPTIMIZERS["adamw"](theirs)
    for k in range(4):
        norm = clipped_gradient_step(ours, mine(draw(16, 3, seed=k)).square().mean(), bound)
        plain.zero_grad()
        theirs(draw(16, 3, seed=k)).square().mean().backward()
        assert norm == pytest.approx(nn.utils.clip_grad_norm_(theirs.parameters(), bound).item(), rel=1e-6)
        plain.step()
        total = torch.stack([p.grad.square().sum() for p in mine.parameters()]).sum().sqrt()
        assert total.item() == pytest.approx(min(norm.item(), bound), rel=1e-3)
    for a, b in zip(mine.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.7, 1.0])
def test_a_target_moves_its_share_of_the_way(tau):
    source = network(0)
    target = frozen_copy(network(1))
    wanted = [torch.lerp(slow, fast, tau) for slow, fast in zip(target.parameters(), source.parameters())]
    polyak_update(target, source, tau)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), wanted))
    if tau == 1.0:
        assert all(torch.equal(a, b) for a, b in zip(target.parameters(), source.parameters()))

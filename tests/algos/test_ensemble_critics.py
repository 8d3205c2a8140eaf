"""Networks and losses that rlpd.py and moorl.py write alike, against their definitions."""

from __future__ import annotations

import math
from itertools import combinations
from types import ModuleType

import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from toys import flat_dataset

from hoard.algos import moorl, rlpd


@pytest.fixture(params=[rlpd, moorl], ids=["rlpd", "moorl"])
def algo(request) -> ModuleType:
    return request.param


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_log_prob_is_that_of_the_transformed_distribution(algo):
    mean, log_std, noise = (torch.randn(50, 3, generator=generator(k), dtype=torch.float64) for k in range(3))
    action, log_prob = algo.squash(mean, log_std, noise)
    dist = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    inner = action.abs().amax(dim=1) < 0.9999  # beyond, atanh inside the reference loses the digits
    assert inner.sum() > 20
    torch.testing.assert_close(log_prob[inner], dist.log_prob(action).sum(-1)[inner], rtol=1e-6, atol=1e-6)
    far = algo.squash(torch.full((1, 1), 60.0), torch.zeros(1, 1), torch.zeros(1, 1))[1]
    assert far.item() == pytest.approx(120 - 2 * math.log(2) - 0.5 * math.log(2 * math.pi), rel=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_ensemble_is_its_members_one_by_one(algo, layer_norm):
    dataset = flat_dataset()
    critic = algo.Critic(algo.Config(critics=4, hidden=(16, 8), layer_norm=layer_norm), 3, 2, generator()).double()
    for p in critic.parameters():  # biases and LayerNorm's parameters too, so that a shared one would show
        p.data += 0.3 * torch.randn(p.shape, generator=generator(1), dtype=p.dtype)
    obs, action = torch.as_tensor(dataset.obs).double(), torch.as_tensor(dataset.action).double()
    q = critic(obs, action)
    assert q.shape == (4, len(dataset))
    for i in range(4):
        modules: list[torch.nn.Module] = []
        for k, (w, b) in enumerate(zip(critic.weights, critic.biases)):
            layer = torch.nn.Linear(w.shape[1], w.shape[2]).double()
            layer.weight.data, layer.bias.data = w[i].T, b[i, 0]
            modules.append(layer)
            if k < 2:
                if layer_norm:
                    norm = torch.nn.LayerNorm(w.shape[2], eps=1e-6).double()
                    norm.weight.data, norm.bias.data = critic.scales[k][i, 0], critic.shifts[k][i, 0]
                    modules.append(norm)
                modules.append(torch.nn.ReLU())
        alone = torch.nn.Sequential(*modules)(torch.cat([obs, action], -1))[:, 0]
        torch.testing.assert_close(q[i], alone)
    assert (q.std(dim=0) > 0).all()


def test_members_start_apart_and_within_xaviers_bound(algo):
    critic = algo.Critic(algo.Config(critics=3, hidden=(64, 64)), 3, 2, generator())
    first = critic.weights[0]
    bound = math.sqrt(6 / (5 + 64))
    assert first.abs().max() <= bound
    assert first.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not torch.equal(first[0], first[1])
    assert all((b == 0).all() for b in critic.biases)


def constant_critic(algo, values: list[float], **options):
    """Critics that say `values` everywhere, and their Config."""
    cfg = algo.Config(critics=len(values), hidden=(4,), layer_norm=False, **options)
    critic = algo.Critic(cfg, 3, 2, generator())
    critic.weights[-1].data.zero_()
    critic.biases[-1].data[:, 0, 0] = torch.tensor(values)
    return critic, cfg


def batch_of(dataset) -> dict[str, torch.Tensor]:
    batch = {k: torch.as_tensor(getattr(dataset, k)) for k in ("obs", "action", "next_obs")}
    return batch | {"reward": torch.zeros(len(dataset)), "terminated": torch.zeros(len(dataset))}


def test_target_is_the_minimum_over_a_fresh_subset_of_target_critics(algo):
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    target, cfg = constant_critic(algo, values, target_min=2, backup_entropy=False, discount=1.0)
    critic, _ = constant_critic(algo, [0.0] * 5)
    actor = algo.Actor(cfg, 3, 2, generator())
    batch, draws, seen = batch_of(flat_dataset()), generator(7), []
    for _ in range(600):  # the critics say 0, so the loss is the square of the one number in the backup
        loss, _ = algo.critic_loss(critic, target, actor, torch.ones(()), algo.with_noise(batch, cfg, draws), cfg)
        seen.append(round(math.sqrt(loss.item()), 4))
    pairs = [min(pair) for pair in combinations(values, 2)]
    for value in (1.0, 2.0, 3.0, 4.0):
        p = pairs.count(value) / len(pairs)
        assert abs(seen.count(value) / 600 - p) < 5 * math.sqrt(p * (1 - p) / 600)
    assert set(seen) == {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("entropy", [True, False])
def test_backup_entropy_and_termination(algo, entropy):
    target, cfg = constant_critic(algo, [3.0, 4.0], backup_entropy=entropy, discount=0.5)
    critic, _ = constant_critic(algo, [0.0, 0.0])
    actor = algo.Actor(cfg, 3, 2, generator())
    batch = batch_of(flat_dataset())
    batch["terminated"][::2] = 1.0
    batch["reward"] += 1.0
    batch = algo.with_noise(batch, cfg, generator(5))
    loss, _ = algo.critic_loss(critic, target, actor, torch.tensor(0.2), batch, cfg)
    _, log_prob = actor.sample(batch["next_obs"], batch["next_noise"])
    value = 3.0 - 0.2 * log_prob * entropy
    backup = torch.where(batch["terminated"] == 1, torch.ones(()), 1 + 0.5 * value)
    assert loss.item() == pytest.approx(backup.square().mean().item(), rel=1e-5)


def test_the_actor_maximises_minimum_or_mean_of_all_critics(algo):
    obs = torch.as_tensor(flat_dataset().obs)
    for mode, q in (("min", 1.0), ("mean", 3.0)):
        critic, cfg = constant_critic(algo, [1.0, 2.0, 6.0], actor_q=mode)
        noise = torch.randn(len(obs), 2, generator=generator(2))
        action, log_prob = algo.Actor(cfg, 3, 2, generator()).sample(obs, noise)
        loss, metrics = algo.actor_loss(critic(obs, action), log_prob, torch.tensor(0.3), cfg)
        assert loss.item() == pytest.approx((-0.3 * metrics["policy/entropy"] - q).item(), rel=1e-5)


@pytest.mark.parametrize(("entropy", "rises"), [(-3.0, True), (1.0, False)])
def test_the_temperature_rises_when_the_entropy_is_below_its_target(algo, entropy, rises):
    alpha = algo.Alpha(0.5, torch.device("cpu"))
    loss, _ = algo.alpha_loss(alpha(), torch.tensor(entropy), -1.0)
    (gradient,) = torch.autograd.grad(loss, alpha.log)
    assert gradient.item() == pytest.approx(0.5 * (entropy + 1))
    assert (gradient.item() < 0) is rises

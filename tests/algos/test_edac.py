"""EDAC's whole update written a second way, its diversity term by hand, and resume."""

from __future__ import annotations

import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from resume import assert_same_run, kill, only_run
from toys import FakeRun, chain_dataset, flat_dataset

from hoard.algos import edac
from hoard.records.errors import BadInput
from hoard.runners.config import check


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options) -> edac.Config:
    return edac.Config(**{"hidden": (8,), "batch_size": 16, "lr": 1e-2, "normalize_obs": False, **options})


def data_of(dataset):
    fields = (dataset.obs, dataset.action, dataset.reward, dataset.next_obs, dataset.terminated)
    return [torch.as_tensor(x) for x in fields]


def assert_same_networks(mine, theirs):
    for name, net in mine.items():
        for one, two in zip(net.parameters(), theirs[name].parameters()):
            torch.testing.assert_close(two.detach(), one.detach(), rtol=1e-3, atol=1e-5, msg=name)


def test_updates_equal_a_second_writing():
    dataset = flat_dataset(n=40, seed=3)
    cfg = quick(updates=4, target_tau=0.1, critics=3, eta=0.7)
    run = FakeRun(dataset, seed=1, remember_start=True)
    edac.train(cfg, run)

    nets, stream = run.start, run.start_generator
    actor, critic, slow = (nets[k] for k in ("networks.actor", "networks.critic", "target"))
    alpha = nets["networks.alpha"]
    adam = {net: torch.optim.Adam(net.parameters(), lr=cfg.lr) for net in (actor, critic, alpha)}

    def sample(obs):
        mean, log_std = actor(obs)
        normal = torch.distributions.Normal(mean, log_std.exp())
        raw = mean + log_std.exp() * torch.randn(mean.shape, generator=stream)
        correction = torch.log(1 - torch.tanh(raw) ** 2)
        return torch.tanh(raw), (normal.log_prob(raw) - correction).sum(-1)

    def descend(net, loss):
        adam[net].zero_grad()
        loss.backward()
        adam[net].step()

    for _ in range(4):
        index = torch.randint(len(dataset), (16,), generator=stream)
        s, a, r, n, end = (x[index] for x in data_of(dataset))
        action, log_prob = sample(s)
        descend(alpha, -alpha.log * (log_prob.detach().mean() - 2.0))
        temperature = alpha.log.exp().detach()
        descend(actor, (temperature * log_prob - critic(s, action).min(0).values).mean())
        with torch.no_grad():
            following, its_log_prob = sample(n)
            y = r + 0.99 * ~end * (slow(n, following).min(0).values - temperature * its_log_prob)
        directions = []
        for i in range(3):
            x = a.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(critic(s, x)[i].sum(), x, create_graph=True)
            directions.append(torch.nn.functional.normalize(gradient, dim=1))
        pairs = [(directions[i] * directions[j]).sum(1) for i in range(3) for j in range(3) if i != j]
        loss = sum(torch.nn.functional.mse_loss(q, y) for q in critic(s, a)) + 0.7 * sum(p.mean() for p in pairs) / 2
        descend(critic, loss)
        for mine, theirs in zip(slow.parameters(), critic.parameters()):
            mine.data = 0.9 * mine.data + 0.1 * theirs.data
    assert_same_networks(nets, run.objects)


def test_diversity_of_linear_critics_by_hand():
    """Gradients with respect to the action are the weights: e1, e1 and -e2; cosines 1, 0, 0, each counted twice."""
    critic = edac.Critic(quick(critics=3, hidden=()), 1, 2, generator())
    with torch.no_grad():
        critic.weights[0].copy_(torch.tensor([[5.0, 2.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, -3.0]])[..., None])
    likeness = edac.diversity_loss(critic, torch.randn(4, 1, generator=generator()), torch.zeros(4, 2))
    assert likeness.item() == pytest.approx(2 * 1 / 2)


def test_diversity_pulls_the_gradients_apart():
    likeness = []
    for eta in (0.0, 20.0):
        run = FakeRun(flat_dataset(n=100, seed=1), seed=0)
        edac.train(quick(updates=300, hidden=(32,), lr=3e-3, critics=4, eta=eta), run)
        data = run.dataset
        critic = run.objects["networks.critic"]
        likeness.append(edac.diversity_loss(critic, torch.as_tensor(data.obs), torch.as_tensor(data.action)).item())
    assert likeness[1] < likeness[0] - 0.5


def test_it_finds_the_way_that_the_data_mixes():
    run = FakeRun(chain_dataset(), seed=0)
    edac.train(
        edac.Config(updates=1500, hidden=(64,), lr=3e-3, target_tau=0.1, discount=0.9, critics=5, init_alpha=0.1), run
    )
    with torch.no_grad():
        assert (run.objects["networks.actor"].act(torch.eye(5)[:4])[:, 0] > 0.8).all()


@pytest.mark.parametrize("option", [{"eta": -1.0}, {"critics": 1}, {"critics": 0, "eta": 0.0}])
def test_unusable_options_are_refused(option):
    with pytest.raises(BadInput, match=next(iter(option))):
        check(edac.Config(**option))


# --- whole runs ---


@pytest.mark.parametrize("preset", list(edac.PRESETS))
def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path, preset):
    done = run_file("edac", *small(tiny, preset=preset))
    assert done.returncode == 0, done.stderr + done.stdout
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, updates=500, checkpoint_every=60, eval_every=250)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("edac", *args, results=straight).returncode == 0
    kill("edac", args, broken, update=150)
    assert "resuming after" in run_file("edac", *args, results=broken).stdout
    assert_same_run(straight, broken)

"""CQL's conservative term and whole update written a second way, Cal-QL's floor, and resume."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from online_toys import OnlineRun
from resume import assert_same_run, kill, only_run
from toys import FakeRun, flat_dataset

from hoard.algos import cql
from hoard.records.errors import BadInput
from hoard.runners.config import check


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options) -> cql.Config:
    return cql.Config(**{"hidden": (8,), "batch_size": 16, "lr": 1e-2, "normalize_obs": False, **options})


def data_of(dataset):
    fields = (dataset.obs, dataset.action, dataset.reward, dataset.next_obs, dataset.terminated)
    return [torch.as_tensor(x) for x in fields]


def assert_same_networks(mine, theirs):
    for name, net in mine.items():
        for one, two in zip(net.parameters(), theirs[name].parameters()):
            torch.testing.assert_close(two.detach(), one.detach(), rtol=1e-3, atol=1e-5, msg=name)


def sample_of(actor, obs, noise):
    mean, log_std = actor(obs)
    action = torch.tanh(mean + log_std.exp() * noise)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    return action, squashed.log_prob(action.clamp(-1 + 1e-6, 1 - 1e-6)).sum(-1)


def conservative(cfg, actor, critic, s, a, n, floor, stream):
    """Both heads' gaps, one action at a time."""
    count, dim = cfg.cql_actions, a.shape[1]
    shape = (len(s), count, dim)
    uniform = 2 * torch.rand(shape, generator=stream) - 1
    noise = torch.randn(shape, generator=stream), torch.randn(shape, generator=stream)
    exponents = []
    for k in range(count):
        exponents.append(critic(s, uniform[:, k]) + dim * math.log(2))
        for obs, eps in ((s, noise[0]), (n, noise[1])):
            with torch.no_grad():
                action, log_prob = sample_of(actor, obs, eps[:, k])
            q = critic(s, action)
            exponents.append((torch.maximum(q, floor) if cfg.calibrate else q) - log_prob)
    q = critic(s, a)
    soft = cfg.cql_temp * torch.logsumexp(torch.stack(exponents) / cfg.cql_temp, dim=0)
    return [(soft[i] - q[i]).mean() for i in range(2)], q


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"calibrate": True, "discount": 0.9},
        {"target_gap": 0.5, "cql_temp": 2.0},
        {"max_target": True, "backup_entropy": True},
    ],
    ids=str,
)
def test_updates_equal_a_second_writing(options):
    dataset = flat_dataset(n=40, seed=3)
    cfg = quick(updates=4, target_tau=0.1, actor_lr=5e-3, cql_actions=3, cql_alpha=2.0, **options)
    run = FakeRun(dataset, seed=1, remember_start=True)
    cql.train(cfg, run)

    nets, stream = run.start, run.start_generator
    actor, critic, slow = (nets[k] for k in ("networks.actor", "networks.critic", "target"))
    alpha, factor = nets["networks.alpha"], nets["networks.factor"]
    adam = {net: torch.optim.Adam(net.parameters(), lr=lr) for net, lr in ((actor, 5e-3), (alpha, 5e-3))}
    adam |= {net: torch.optim.Adam(net.parameters(), lr=cfg.lr) for net in (critic, factor)}
    to_go = torch.tensor(dataset.returns_to_go(cfg.discount), dtype=torch.float32)

    def descend(net, loss):
        adam[net].zero_grad()
        loss.backward()
        adam[net].step()

    for _ in range(4):
        index = torch.randint(len(dataset), (16,), generator=stream)
        s, a, r, n, end = (x[index] for x in data_of(dataset))
        action, log_prob = sample_of(actor, s, torch.randn(16, 2, generator=stream))
        descend(alpha, -alpha.log * (log_prob.detach().mean() - 2.0))
        temperature = alpha.log.exp().detach()
        descend(actor, (temperature * log_prob - torch.minimum(*critic(s, action))).mean())
        with torch.no_grad():
            tries = 3 if cfg.max_target else 1
            noise = torch.randn(16, tries, 2, generator=stream)
            values, bonus = [], []
            for k in range(tries):
                following, its_log_prob = sample_of(actor, n, noise[:, k])
                values.append(torch.minimum(*slow(n, following)))
                bonus.append(-temperature * its_log_prob)
            best = torch.stack(values).argmax(0)
            value = torch.stack(values)[best, range(16)]
            if cfg.backup_entropy:
                value = value + torch.stack(bonus)[best, range(16)]
            y = r + cfg.discount * ~end * value
        gaps, q = conservative(cfg, actor, critic, s, a, n, to_go[index], stream)
        gap = cfg.target_gap or 0.0
        if cfg.target_gap is not None:
            descend(factor, -factor.log.exp() * 2.0 * (sum(g.detach() for g in gaps) / 2 - gap))
        weight = factor.log.exp().detach() if cfg.target_gap is not None else 1.0
        loss = sum(torch.nn.functional.mse_loss(head, y) for head in q) + weight * 2.0 * sum(g - gap for g in gaps)
        descend(critic, loss)
        for mine, theirs in zip(slow.parameters(), critic.parameters()):
            mine.data = 0.9 * mine.data + 0.1 * theirs.data
    assert_same_networks(nets, run.objects)


def test_a_constant_critic_has_the_gap_of_its_densities():
    """Q = c everywhere and the policy uniform: the soft maximum is c + log(3 n 2^dim)."""
    cfg, dim = cql.Config(cql_actions=4), 2

    class Uniform:
        def sample(self, obs, noise):
            return noise.tanh(), torch.full(obs.shape[:-1], -dim * math.log(2))

    batch = {"obs": torch.zeros(5, 3), "next_obs": torch.ones(5, 3), "action": torch.zeros(5, dim)}
    batch = cql.with_noise(batch, cfg, generator())
    gap, q = cql.gap_of(lambda obs, action: torch.full((2, *action.shape[:-1]), 7.0), Uniform(), batch, cfg)
    assert q.tolist() == [[7.0] * 5] * 2
    assert gap.tolist() == pytest.approx([math.log(3 * 4 * 2**dim)] * 2, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_actions_that_the_data_lack_are_pushed_down(weight):
    dataset = flat_dataset(n=200, seed=1)
    dataset.action[:] = dataset.action * 0.2  # near 0 alone
    run = FakeRun(dataset, seed=0)
    cql.train(quick(updates=300, hidden=(32,), lr=3e-3, cql_alpha=weight), run)
    obs = torch.as_tensor(dataset.obs)
    with torch.no_grad():
        critic = run.objects["networks.critic"]
        near, far = (critic(obs, torch.full((len(obs), 2), x)).mean().item() for x in (0.0, 0.95))
    assert (near > far + 1) == (weight > 0)


def test_returns_are_those_of_the_rewards_trained_on():
    dataset = flat_dataset(n=20, seed=2, lengths=[12, 8])
    run = OnlineRun(dataset, seed=0, episode=7)
    cfg = quick(updates=1, online_steps=17, calibrate=True, reward_scale=2.0, reward_shift=-0.5, discount=0.8)
    cql.train(cfg, run)
    buffer, values = run.objects["buffer"], run.objects["returns"].values.tolist()
    ends = [12, 20, 27, 34]
    for first, last in zip([0, *ends], ends):
        rewards = buffer.reward[first:last].tolist()
        for t in range(last - first):
            assert values[first + t] == pytest.approx(sum(0.8**k * r for k, r in enumerate(rewards[t:])), abs=1e-4)
    assert values[34:] == [-math.inf] * 3  # the episode that has not ended
    assert len(run.logged) == 18


@pytest.mark.parametrize("option", [{"cql_alpha": -1.0}, {"cql_temp": 0.0}, {"cql_actions": 0}, {"actor_lr": 0.0}])
def test_unusable_options_are_refused(option):
    with pytest.raises(BadInput, match=next(iter(option))):
        check(cql.Config(**option))


# --- whole runs ---


@pytest.mark.parametrize("preset", list(cql.PRESETS))
def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path, preset):
    done = run_file("cql", *small(tiny, preset=preset))
    assert done.returncode == 0, done.stderr + done.stdout
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(
        tiny, updates=60, online_steps=700, checkpoint_every=100, eval_every=200, preset="cal_ql", cql_actions=2
    )
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("cql", *args, results=straight).returncode == 0
    kill("cql", args, broken, env_step=300)
    assert "resuming after" in run_file("cql", *args, results=broken).stdout
    assert_same_run(straight, broken)

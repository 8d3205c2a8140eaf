"""MOORL against a plain writing of SAC and Reptile; RLPD's parts against their definitions; sources; resume."""

from __future__ import annotations

import copy
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small
from online_toys import OnlineRun
from resume import assert_same_run, checkpoint, kill, only_run
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from toys import flat_dataset

from hoard.algos import moorl
from hoard.datasets import ReplayBuffer, load

ONLINE = {"online_steps": 430, "start_steps": 60, "inner_steps": 2, "eval_every": 200, "checkpoint_every": 100}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the whole update ---


class PlainSAC:
    """Soft actor-critic, written without the file's classes: two separate critics, torch's distributions."""

    def __init__(self, nets, lr: float, dim: int) -> None:
        self.actor = [(layer.weight, layer.bias) for layer in nets["actor"].layers]
        critic = nets["critic"]
        self.critics = self.members(critic)
        self.targets = self.members(copy.deepcopy(critic))
        self.log_alpha = nets["temperature"].log
        self.adam = [
            torch.optim.Adam(group, lr=lr)
            for group in (flat(self.critics[0]) + flat(self.critics[1]), flat(self.actor), [self.log_alpha])
        ]
        self.dim = dim

    @staticmethod
    def members(critic):
        return [
            [
                (w[i].detach().T.clone().requires_grad_(), b[i, 0].detach().clone().requires_grad_())
                for w, b in zip(critic.weights, critic.biases)
            ]
            for i in range(2)
        ]

    def policy(self, obs, noise):
        mean, log_std = mlp(self.actor, obs).chunk(2, dim=-1)
        std = log_std.clamp(-20, 2).exp()
        dist = TransformedDistribution(Normal(mean, std), TanhTransform(cache_size=1))
        action = torch.tanh(mean + std * noise)
        return action, dist.log_prob(action).sum(-1)

    def q(self, nets, obs, action):
        return torch.stack([mlp(net, torch.cat([obs, action], -1))[:, 0] for net in nets])

    def step(self, batch, first, second) -> None:
        s, a, r, n, d = (batch[k] for k in ("obs", "action", "reward", "next_obs", "terminated"))
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_action, log_prob = self.policy(n, first)
            y = r + 0.99 * (1 - d) * (torch.minimum(*self.q(self.targets, n, next_action)) - alpha * log_prob)
        one, two = self.q(self.critics, s, a)
        self.descend(0, ((one - y) ** 2).mean() / 2 + ((two - y) ** 2).mean() / 2)
        for slow, fast in zip(flat(self.targets[0] + self.targets[1]), flat(self.critics[0] + self.critics[1])):
            slow.data = 0.995 * slow.data + 0.005 * fast.data
        action, log_prob = self.policy(s, second)
        self.descend(1, (alpha * log_prob - torch.minimum(*self.q(self.critics, s, action))).mean())
        self.descend(2, self.log_alpha.exp() * (-log_prob.detach().mean() + self.dim))

    def descend(self, which, loss) -> None:
        self.adam[which].zero_grad()
        loss.backward()
        self.adam[which].step()


def flat(layers):
    return [tensor for pair in layers for tensor in pair]


def mlp(layers, x):
    for weight, bias in layers[:-1]:
        x = torch.relu(x @ weight.T + bias)
    return x @ layers[-1][0].T + layers[-1][1]


def by_hand(run: OnlineRun, cfg: moorl.Config, bursts: int) -> tuple[PlainSAC, list, list]:
    """The same bursts by `PlainSAC` with an outer update; the meta-weights of actor and critics."""
    sac = PlainSAC(run.start, cfg.lr, run.dataset.action_dim)
    draws = run.start_generator
    buffer = run.objects["buffer"]
    weights = [flat(sac.actor), flat(sac.critics[0] + sac.critics[1])]
    meta = [[w.detach().clone() for w in group] for group in weights]
    for _ in range(bursts):
        for group, slow in zip(weights, meta):
            for w, m in zip(group, slow):
                w.data = m.clone()
        for _ in range(cfg.inner_steps):
            batch = buffer.gather(torch.randint(len(run.dataset), (cfg.batch_size,), generator=draws))
            shape = (cfg.batch_size, run.dataset.action_dim)
            sac.step(batch, *(torch.randn(shape, generator=draws).double() for _ in range(2)))
        for group, slow in zip(weights, meta):
            for w, m in zip(group, slow):
                m += cfg.eta_meta * (w.detach() - m)
    return sac, *meta


def trained(cfg: moorl.Config) -> OnlineRun:
    run = OnlineRun(flat_dataset(n=60, seed=3), seed=1, double=True, remember_start=True)
    moorl.train(cfg, run)
    return run


def stacked(critic) -> list[torch.Tensor]:
    return [t for i in range(2) for w, b in zip(critic.weights, critic.biases) for t in (w[i].T, b[i, 0])]


def equal(mine, theirs) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("k", [1, 3])
def test_without_meta_step_and_on_one_source_it_is_sac_update_for_update(k):
    cfg = moorl.Config(
        updates=6 // k, online_steps=0, hidden=(16, 8), batch_size=32, eta_meta=1.0, inner_steps=k, lr=0.01
    )
    run = trained(cfg)
    sac, *_ = by_hand(run, cfg, bursts=6 // k)
    got = run.objects
    equal([p for layer in got["actor"].layers for p in (layer.weight, layer.bias)], flat(sac.actor))
    equal(stacked(got["critic"]), flat(sac.critics[0] + sac.critics[1]))
    equal(stacked(got["target"]), flat(sac.targets[0] + sac.targets[1]))
    equal([got["temperature"].log], [sac.log_alpha])
    assert (run.start["critic"].weights[0] - got["critic"].weights[0]).abs().max() > 0.01  # it went somewhere
    for slow, fast in (("meta_actor", "actor"), ("meta_critic", "critic")):  # the outer update is a copy, to the bit
        assert all(torch.equal(a, b) for a, b in zip(got[slow].parameters(), got[fast].parameters()))


@pytest.mark.parametrize("eta", [0.25, 0.7])
def test_the_outer_update_is_reptiles(eta):
    """meta + eta (fast - meta) after every burst of K = 3; bursts start from meta; Adam and target go on."""
    cfg = moorl.Config(updates=3, online_steps=0, hidden=(16, 8), batch_size=32, eta_meta=eta, inner_steps=3, lr=0.01)
    run = trained(cfg)
    sac, meta_actor, meta_critic = by_hand(run, cfg, bursts=3)
    got = run.objects
    equal([p for layer in got["meta_actor"].layers for p in (layer.weight, layer.bias)], meta_actor)
    equal(stacked(got["meta_critic"]), meta_critic)
    equal(stacked(got["critic"]), flat(sac.critics[0] + sac.critics[1]))
    equal(stacked(got["target"]), flat(sac.targets[0] + sac.targets[1]))
    equal([got["temperature"].log], [sac.log_alpha])


def test_options_of_the_burst():
    def run(**options):
        base = {"updates": 2, "online_steps": 0, "hidden": (8,), "batch_size": 16, "lr": 0.01, "inner_steps": 3}
        return trained(moorl.Config(**base | options)).objects

    def start_and_end(got, name):
        return [torch.cat([p.flatten() for p in got[n].parameters()]) for n in (name, f"meta_{name}")]

    plain = run()
    steps = lambda got: next(iter(got["critic_adam"].state.values()))["step"].item()  # noqa: E731
    assert (steps(plain), steps(run(reset_adam=True))) == (6, 3)

    once = trained(
        cfg := moorl.Config(updates=1, online_steps=0, hidden=(8,), inner_steps=3, target_mode="meta_once_per_burst")
    )
    old, meta, target = (
        net.weights[0] for net in (once.start["target"], once.objects["meta_critic"], once.objects["target"])
    )
    torch.testing.assert_close(target, old + cfg.target_tau * (meta - old))

    assert torch.equal(run(temperature_mode="fixed")["temperature"].log.exp(), torch.ones((), dtype=torch.float64))
    one = trained(
        cfg := moorl.Config(updates=1, online_steps=0, hidden=(8,), inner_steps=3, lr=0.01, temperature_mode="meta")
    )
    fast, slow = one.objects["temperature"].log, one.objects["meta_temperature"].log
    assert slow.item() == pytest.approx(cfg.eta_meta * fast.item())  # it started at log 1 = 0
    assert fast.item() != 0

    only_last = run(actor_steps="last")
    assert next(iter(only_last["actor_adam"].state.values()))["step"].item() == 2
    assert steps(only_last) == 6
    slow, fast = start_and_end(plain, "actor")
    assert not torch.equal(slow, fast)


@pytest.mark.parametrize(("reuse", "batches"), [(False, 6), (True, 2)])
def test_batches_of_a_burst(monkeypatch, reuse, batches):
    drawn = spy(monkeypatch)
    trained(moorl.Config(updates=2, online_steps=0, hidden=(8,), batch_size=16, inner_steps=3, reuse_batch=reuse))
    assert drawn == [1.0] * batches


@pytest.mark.parametrize("act_with", ["meta", "fast"])
def test_who_acts_and_is_evaluated(act_with):
    run = OnlineRun(flat_dataset(), seed=0)
    run.eval_at = (12,)
    moorl.train(
        moorl.Config(online_steps=12, start_steps=6, hidden=(8,), batch_size=4, act_with=act_with, lr=0.01), run
    )
    acting = run.objects["meta_actor" if act_with == "meta" else "actor"]
    assert run.evaluated == [(12, "", acting.act)]


# --- sources ---


def spy(monkeypatch) -> list[float]:
    """The offline share of every batch drawn from now on, counted on the indices."""
    shares: list[float] = []
    draw = ReplayBuffer.draw

    def watched(self, *args):
        index = draw(self, *args)
        shares.append((index < self.offline_size).float().mean().item())
        return index

    monkeypatch.setattr(ReplayBuffer, "draw", watched)
    return shares


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_one_source_per_burst_as_often_as_asked(monkeypatch, p):
    shares = spy(monkeypatch)
    cfg = moorl.Config(online_steps=158, start_steps=8, hidden=(4,), batch_size=8, inner_steps=2, p_offline=p)
    moorl.train(cfg, OnlineRun(flat_dataset(), seed=0))
    bursts = np.array(shares).reshape(-1, 2)
    assert len(bursts) == 150
    assert set(bursts.flatten()) <= {0.0, 1.0}
    assert (bursts[:, 0] == bursts[:, 1]).all()
    # Five standard deviations of a binomial; p = 0 and 1 leave no room at all.
    assert abs(bursts[:, 0].mean() - p) <= 5 * math.sqrt(p * (1 - p) / 150)


def test_the_dataset_alone_until_the_replay_holds_a_batch(monkeypatch):
    shares = spy(monkeypatch)
    cfg = moorl.Config(online_steps=40, start_steps=0, hidden=(4,), batch_size=16, inner_steps=1, p_offline=0.01)
    moorl.train(cfg, OnlineRun(flat_dataset(), seed=0))
    assert shares[:15] == [1.0] * 15
    assert np.mean(shares[15:]) < 0.5


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_mixed_batches_hold_exactly_the_share(monkeypatch, ratio):
    shares = spy(monkeypatch)
    cfg = moorl.Config(
        online_steps=12, start_steps=4, hidden=(4,), batch_size=16, sampling="mixed", offline_ratio=ratio
    )
    moorl.train(cfg, OnlineRun(flat_dataset(), seed=0))
    assert shares == [ratio] * 8 * 5


def test_plain_sac_never_looks_at_the_dataset():
    """Not a number anywhere in the offline part, and every weight stays finite."""
    cfg = moorl.Config(**moorl.PRESETS["sac"] | {"online_steps": 20, "start_steps": 5, "hidden": (8,), "batch_size": 8})
    run = OnlineRun(flat_dataset(), seed=0)
    register = run.register

    def spoil(**objects):
        for name in ("action", "reward"):
            getattr(objects["buffer"], name)[: len(run.dataset)] = math.nan
        register(**objects)

    run.register = spoil
    moorl.train(cfg, run)
    assert len(run.logged) == 15
    assert all(torch.isfinite(p).all() for n in ("actor", "critic") for p in run.objects[n].parameters())


def test_random_start_then_the_policy():
    run = OnlineRun(flat_dataset(high=3.0), seed=0)
    moorl.train(moorl.Config(online_steps=330, start_steps=320, hidden=(8,), batch_size=8), run)
    assert len(run.logged) == 10 == run.update
    start = np.array(run.env.actions[:320])
    assert np.abs(start).max() <= 3
    assert np.abs(start).max() > 2.9
    assert start.std() == pytest.approx(3 / math.sqrt(3), rel=0.1)  # uniform on [-3, 3]


def test_what_the_buffer_holds():
    """Both parts have their actions in [-1, 1] and their rewards transformed alike; terminations are data's or none."""
    dataset = flat_dataset(high=3.0)
    options = {"online_steps": 30, "start_steps": 20, "hidden": (8,), "batch_size": 8, "reward_scale": 2.0}
    run = OnlineRun(dataset, seed=0)
    moorl.train(moorl.Config(**options, reward_shift=-1.0), run)
    buffer, n = run.objects["buffer"], len(dataset)
    assert buffer.reward[:n].numpy() == pytest.approx(2 * (dataset.reward - 1))
    assert buffer.reward[n:].numpy() == pytest.approx(2 * (np.array(run.env.rewards) - 1), abs=1e-6)
    done = np.clip(np.array(run.env.actions) / 3, -1 + 1e-5, 1 - 1e-5)
    assert buffer.action[n:].numpy() == pytest.approx(done, abs=1e-6)
    assert buffer.action[:n].numpy() == pytest.approx(dataset.action / 3, abs=1e-6)
    assert buffer.terminated[:n].sum() == 1
    run = OnlineRun(dataset, seed=0)
    moorl.train(moorl.Config(**options, offline_terminals=False), run)
    assert run.objects["buffer"].terminated.sum() == 0


# --- networks and losses ---


def test_log_prob_is_that_of_the_transformed_distribution():
    mean, log_std, noise = (torch.randn(50, 3, generator=generator(k), dtype=torch.float64) for k in range(3))
    action, log_prob = moorl.squash(mean, log_std, noise)
    dist = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    inner = action.abs().amax(dim=1) < 0.9999  # beyond, atanh inside the reference loses the digits
    assert inner.sum() > 20
    torch.testing.assert_close(log_prob[inner], dist.log_prob(action).sum(-1)[inner], rtol=1e-6, atol=1e-6)
    far = moorl.squash(torch.full((1, 1), 60.0), torch.zeros(1, 1), torch.zeros(1, 1))[1]
    assert far.item() == pytest.approx(120 - 2 * math.log(2) - 0.5 * math.log(2 * math.pi), rel=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_ensemble_is_its_members_one_by_one(layer_norm):
    dataset = flat_dataset()
    cfg = moorl.Config(critics=4, hidden=(16, 8), layer_norm=layer_norm)
    ensemble = moorl.Ensemble(dataset, cfg, generator()).double()
    for p in ensemble.parameters():  # biases and LayerNorm's parameters too, so that a shared one would show
        p.data += 0.3 * torch.randn(p.shape, generator=generator(1), dtype=p.dtype)
    obs, action = torch.as_tensor(dataset.obs).double(), torch.as_tensor(dataset.action).double()
    q = ensemble(obs, action)
    assert q.shape == (4, len(dataset))
    for i in range(4):
        layers: list[torch.nn.Module] = []
        for k, (w, b) in enumerate(zip(ensemble.weights, ensemble.biases)):
            layer = torch.nn.Linear(w.shape[1], w.shape[2]).double()
            layer.weight.data, layer.bias.data = w[i].T, b[i, 0]
            layers.append(layer)
            if k < 2:
                if layer_norm:
                    norm = torch.nn.LayerNorm(w.shape[2], eps=1e-6).double()
                    norm.weight.data, norm.bias.data = ensemble.scales[k][i, 0], ensemble.shifts[k][i, 0]
                    layers.append(norm)
                layers.append(torch.nn.ReLU())
        alone = torch.nn.Sequential(*layers)(torch.cat([obs, action], -1))[:, 0]
        torch.testing.assert_close(q[i], alone)
    assert (q.std(dim=0) > 0).all()


def test_members_start_apart_and_within_xaviers_bound():
    ensemble = moorl.Ensemble(flat_dataset(), moorl.Config(critics=3, hidden=(64, 64)), generator())
    first = ensemble.weights[0]
    bound = math.sqrt(6 / (5 + 64))
    assert first.abs().max() <= bound
    assert first.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not torch.equal(first[0], first[1])
    assert all((b == 0).all() for b in ensemble.biases)


def constant_ensemble(values: list[float], dataset, **options) -> tuple[moorl.Ensemble, moorl.Config]:
    cfg = moorl.Config(critics=len(values), hidden=(4,), **options)
    ensemble = moorl.Ensemble(dataset, cfg, generator())
    ensemble.weights[-1].data.zero_()
    ensemble.biases[-1].data[:, 0, 0] = torch.tensor(values)
    return ensemble, cfg


def batch_of(dataset) -> dict[str, torch.Tensor]:
    batch = {k: torch.as_tensor(getattr(dataset, k)) for k in ("obs", "action", "next_obs")}
    return batch | {"reward": torch.zeros(len(dataset)), "terminated": torch.zeros(len(dataset))}


def test_target_is_the_minimum_over_a_fresh_subset_of_target_critics():
    dataset = flat_dataset()
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    target, cfg = constant_ensemble(values, dataset, target_min=2, backup_entropy=False, discount=1.0)
    critic, _ = constant_ensemble([0.0] * 5, dataset)
    actor = moorl.Actor(dataset, cfg, generator())
    draws = generator(7)
    seen = []
    for _ in range(600):  # the critics say 0, so the loss is the square of the one number in the backup
        loss, _ = moorl.critic_loss(critic, target, actor, torch.ones(()), batch_of(dataset), cfg, draws)
        seen.append(round(math.sqrt(loss.item()), 4))
    pairs = [min(pair) for pair in combinations(values, 2)]
    for value in (1.0, 2.0, 3.0, 4.0):
        p = pairs.count(value) / len(pairs)
        assert abs(seen.count(value) / 600 - p) < 5 * math.sqrt(p * (1 - p) / 600)
    assert set(seen) == {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("entropy", [True, False])
def test_backup_entropy_and_termination(entropy):
    dataset = flat_dataset()
    target, cfg = constant_ensemble([3.0, 4.0], dataset, backup_entropy=entropy, discount=0.5)
    critic, _ = constant_ensemble([0.0, 0.0], dataset)
    actor = moorl.Actor(dataset, cfg, generator())
    batch = batch_of(dataset)
    batch["terminated"][::2] = 1.0
    batch["reward"] += 1.0
    loss, _ = moorl.critic_loss(critic, target, actor, torch.tensor(0.2), batch, cfg, generator(5))
    _, log_prob = actor.sample(batch["next_obs"], generator(5))
    value = 3.0 - 0.2 * log_prob * entropy
    backup = torch.where(batch["terminated"] == 1, torch.ones(()), 1 + 0.5 * value)
    assert loss.item() == pytest.approx(backup.square().mean().item(), rel=1e-5)


def test_the_actor_maximises_minimum_or_mean_of_all_critics():
    dataset = flat_dataset()
    for mode, q in (("min", 1.0), ("mean", 3.0)):
        critic, cfg = constant_ensemble([1.0, 2.0, 6.0], dataset, actor_q=mode)
        actor = moorl.Actor(dataset, cfg, generator())
        obs = torch.as_tensor(dataset.obs)
        loss, metrics = moorl.actor_loss(actor, critic, torch.tensor(0.3), obs, cfg, generator(2))
        assert loss.item() == pytest.approx((-0.3 * metrics["policy/entropy"] - q).item(), rel=1e-5)


@pytest.mark.parametrize(("entropy", "rises"), [(-3.0, True), (1.0, False)])
def test_temperature_rises_when_the_entropy_is_below_its_target(entropy, rises):
    temperature = moorl.Temperature(0.5, torch.device("cpu"))
    loss, _ = moorl.temperature_loss(temperature(), torch.tensor(entropy), -1.0)
    (gradient,) = torch.autograd.grad(loss, temperature.log)
    assert gradient.item() == pytest.approx(0.5 * (entropy + 1))
    assert (gradient.item() < 0) is rises


def test_presets():
    assert moorl.Config(**moorl.PRESETS["moorl"]) == moorl.Config()
    rlpd = moorl.Config(**moorl.PRESETS["rlpd"])
    assert (rlpd.critics, rlpd.target_min, rlpd.inner_steps, rlpd.offline_ratio) == (10, 2, 20, 0.5)
    assert (rlpd.actor_q, rlpd.actor_steps, rlpd.layer_norm, rlpd.eta_meta) == ("mean", "last", True, 1.0)
    for options in moorl.PRESETS.values():
        moorl.check(moorl.Config(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_offline": 1.5}, "p_offline 1.5"),
        ({"target_min": 3}, "target_min 3"),
        ({"eta_meta": 0.0}, "eta_meta"),
        ({"inner_steps": 0}, "inner_steps 0"),
        ({"init_temperature": 0.0}, "init_temperature"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        moorl.train(moorl.Config(**options), OnlineRun(flat_dataset(), seed=0))


# --- whole runs ---


@pytest.mark.parametrize("preset", ["moorl", "rlpd", "sac"])
def test_end_to_end(tiny, run_file, tmp_path, preset):
    more = {"critics": 3} if preset == "rlpd" else {}
    done = run_file("moorl", "--preset", preset, *small(tiny, **ONLINE | {"updates": 5, "online_steps": 130}, **more))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path / "results")
    rows = pd.read_parquet(folder / "episodes.parquet")
    assert rows.groupby(["update", "env_step", "final"]).size().to_dict() == {(5, 0, False): 2, (75, 130, True): 3}
    metrics = pd.read_parquet(folder / "metrics.parquet")
    seen = {name for name in metrics if name.startswith("values/q_")}
    assert (
        seen
        == {
            "moorl": {"values/q_offline", "values/q_online"},
            "rlpd": {"values/q_offline", "values/q_mixed"},
            "sac": {"values/q_offline", "values/q_online"},  # offline: the five updates before
        }[preset]
    )
    stored = checkpoint(folder)["objects"]["buffer"]
    assert len(load(tiny)) + stored["online_size"] == stored["offline_size"] + 130


def test_killed_online_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, **ONLINE | {"updates": 10, "checkpoint_every": 150})
    assert run_file("moorl", *args, results=tmp_path / "straight").returncode == 0
    kill("moorl", args, tmp_path / "broken", env_step=210)
    resumed = run_file("moorl", *args, results=tmp_path / "broken")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming after environment step" in resumed.stdout
    assert_same_run(tmp_path / "straight", tmp_path / "broken")

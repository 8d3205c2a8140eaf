"""SAC: every update stable-baselines3's; what it stores and records; resume."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from online_toys import OnlineRun
from resume import assert_same_run, checkpoint, dying_at, kill, only_run
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform
from toys import flat_dataset

from hoard.algos import sac
from hoard.datasets import ReplayBuffer
from hoard.runners import main

ONLINE = {
    "updates": 0, "online_steps": 430, "start_steps": 210, "log_every": 50, "eval_every": 200, "checkpoint_every": 100,
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the update, against stable-baselines3 ---


class Spaces(gym.Env):
    """An environment that is never stepped: stable-baselines3 asks for one to know the spaces."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


class Theirs:
    """stable-baselines3's SAC with the weights of one of our runs, fed with that run's batches and noise."""

    def __init__(self, monkeypatch, cfg: sac.Config, start, dtype: torch.dtype) -> None:
        self.sac = SAC(
            "MlpPolicy",
            Spaces(),
            learning_rate=cfg.lr,
            buffer_size=1,  # replaced below
            tau=cfg.target_tau,
            gamma=cfg.discount,
            ent_coef=f"auto_{cfg.init_alpha}" if cfg.alpha is None else cfg.alpha,
            target_entropy=2 * cfg.target_entropy,
            policy_kwargs={"net_arch": list(cfg.hidden)},
            device="cpu",
        )
        self.sac.set_logger(Logger(folder=None, output_formats=[]))
        self.sac.policy.to(dtype)
        if self.sac.log_ent_coef is not None:
            self.sac.log_ent_coef.data = self.sac.log_ent_coef.data.to(dtype)
        with torch.no_grad():
            for mine, theirs in self.pairs(start):
                theirs.copy_(mine)
        self.sac.replay_buffer = self
        self.noise = generator()
        # Its noise comes from the global stream; here from the state in which our generator drew the same numbers.
        standard_normal = lambda shape, dtype, device: torch.randn(shape, generator=self.noise, dtype=dtype)  # noqa: E731
        monkeypatch.setattr("torch.distributions.normal._standard_normal", standard_normal)
        if dtype is torch.float64:  # it casts observations to float32
            monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda obs, *_, **__: obs)

    def sample(self, *_, **__) -> ReplayBufferSamples:
        """The next batch of our run; the noise continues from where ours did."""
        batch, state = self.batches.pop(0)
        self.noise.set_state(state)
        return ReplayBufferSamples(
            batch["obs"], batch["action"], batch["next_obs"], batch["terminated"][:, None], batch["reward"][:, None]
        )

    def train(self, batches, gradient_steps: int) -> dict[str, float]:
        self.batches = batches
        self.sac.train(gradient_steps, len(batches[0][0]["reward"]))
        assert not self.batches
        return {name.removeprefix("train/"): value for name, value in self.sac.logger.name_to_value.items()}

    def pairs(self, nets):
        """Our parameters beside theirs, by network."""
        actor = self.sac.policy.actor
        hidden = [m for m in actor.latent_pi if isinstance(m, torch.nn.Linear)]
        for ours, layer in zip(nets["networks.actor"].layers, hidden):
            yield from ((ours.weight, layer.weight), (ours.bias, layer.bias))
        last, n = nets["networks.actor"].layers[-1], self.sac.action_space.shape[0]
        for rows, layer in ((slice(None, n), actor.mu), (slice(n, None), actor.log_std)):
            yield from ((last.weight[rows], layer.weight), (last.bias[rows], layer.bias))
        for name, critic in (("networks.critic", self.sac.critic), ("target", self.sac.critic_target)):
            for i, head in enumerate(critic.q_networks):
                linears = [m for m in head if isinstance(m, torch.nn.Linear)]
                for w, b, layer in zip(nets[name].weights, nets[name].biases, linears, strict=True):
                    yield from ((w[i].T, layer.weight), (b[i, 0], layer.bias))
        if self.sac.log_ent_coef is not None:
            yield nets["networks.alpha"].log.reshape(1), self.sac.log_ent_coef


def watched_run(monkeypatch, cfg: sac.Config, dtype: torch.dtype) -> tuple[OnlineRun, list]:
    """Train and keep each batch with the state of the generator after it, from which the update's noise follows."""
    batches: list = []
    sample = ReplayBuffer.sample

    def spy(self, *args):
        batch = sample(self, *args)
        batches.append((batch, run.generator.get_state()))
        return batch

    run = OnlineRun(flat_dataset(), seed=3, double=dtype is torch.float64, remember_start=True)
    if run.double:
        monkeypatch.setattr(type(run.env), "obs", property(lambda env: torch.as_tensor(env._obs)[None].double()))
    monkeypatch.setattr(ReplayBuffer, "sample", spy)
    sac.train(cfg, run)
    monkeypatch.undo()
    return run, batches


@pytest.mark.parametrize("alpha", [None, 0.2])
@pytest.mark.parametrize(
    ("updates", "dtype"),
    [(1, torch.float64), (2, torch.float64), (100, torch.float64), (1, torch.float32), (2, torch.float32)],
)
def test_every_update_is_stable_baselines3s(monkeypatch, updates, dtype, alpha):
    """Same weights, batches and noise: losses, actor, critics, target critics and temperature agree to 1e-5."""
    cfg = sac.Config(
        online_steps=20 + updates, start_steps=20, hidden=(32, 16), batch_size=16, lr=3e-3, alpha=alpha, init_alpha=0.5,
        target_entropy=-0.7, discount=0.95, target_tau=0.02,
    )  # fmt: skip
    run, batches = watched_run(monkeypatch, cfg, dtype)
    assert len(batches) == updates == len(run.logged)
    theirs = Theirs(monkeypatch, cfg, run.start, dtype)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 if dtype is torch.float32 else 1e-9)  # noqa: E731
    for batch, logged in zip(batches, run.logged):
        said = theirs.train([batch], 1)
        names = {"losses/critic": "critic_loss", "losses/actor": "actor_loss", "policy/alpha": "ent_coef"}
        for ours, name in (names | ({"losses/alpha": "ent_coef_loss"} if alpha is None else {})).items():
            close(logged[ours].to(dtype), torch.tensor(said[name], dtype=dtype))
    pairs = list(theirs.pairs(run.objects))
    assert len(pairs) == 8 + 2 * 12 + (alpha is None)  # weights and biases: actor, critics and targets; temperature
    for mine, other in pairs:
        assert mine.dtype is other.dtype is dtype
        close(mine.detach(), other.detach())
    moved = [(a - b).abs().max() for (a, _), (b, _) in zip(theirs.pairs(run.start), pairs)]
    assert min(moved) > 0  # every one of them has learnt


def test_several_updates_per_step_are_several_of_stable_baselines3s(monkeypatch):
    cfg = sac.Config(online_steps=23, start_steps=20, hidden=(8,), batch_size=16, lr=3e-3, updates_per_step=4)
    run, batches = watched_run(monkeypatch, cfg, torch.float64)
    assert len(batches) == 12 == run.update
    theirs = Theirs(monkeypatch, cfg, run.start, torch.float64)
    theirs.train(batches, 12)
    for mine, other in theirs.pairs(run.objects):
        torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-5, atol=1e-9)


# --- networks ---


def test_log_prob_is_that_of_the_transformed_distribution():
    mean, log_std, noise = (torch.randn(50, 3, generator=generator(k), dtype=torch.float64) for k in range(3))
    action, log_prob = sac.squash(mean, log_std, noise)
    dist = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    inner = action.abs().amax(dim=1) < 0.99  # beyond, the 1e-6 shows
    assert inner.sum() > 10
    torch.testing.assert_close(log_prob[inner], dist.log_prob(action).sum(-1)[inner], rtol=0, atol=2e-4)
    far = sac.squash(torch.full((1, 1), 60.0), torch.zeros(1, 1), torch.zeros(1, 1))[1]
    assert far.item() == pytest.approx(-math.log(1e-6) - 0.5 * math.log(2 * math.pi), rel=1e-5)


def test_the_critic_is_its_heads_one_by_one():
    dataset = flat_dataset()
    critic = sac.Critic(sac.Config(hidden=(16, 8)), 3, 2, generator()).double()
    obs, action = torch.as_tensor(dataset.obs).double(), torch.as_tensor(dataset.action).double()
    q = critic(obs, action)
    assert q.shape == (2, len(dataset))
    for i in range(2):
        x = torch.cat([obs, action], -1)
        for k, (w, b) in enumerate(zip(critic.weights, critic.biases)):
            x = (torch.relu(x) if k else x) @ w[i] + b[i, 0]
        torch.testing.assert_close(q[i], x[:, 0])
    assert (q[0] - q[1]).abs().min() > 0


def test_networks_start_as_torch_starts_linear_layers():
    cfg = sac.Config(hidden=(64, 64))
    actor, critic = sac.Actor(cfg, 3, 2, generator()), sac.Critic(cfg, 3, 2, generator())
    for tensor, inputs in (
        (actor.layers[1].weight, 64), (actor.layers[1].bias, 64), (critic.weights[0], 5), (critic.biases[2], 64),
    ):  # fmt: skip
        assert tensor.abs().max() <= 1 / math.sqrt(inputs)
        assert tensor.abs().max() > 0
    assert critic.weights[1].std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert not torch.equal(critic.weights[1][0], critic.weights[1][1])


# --- what it acts on and learns from ---


def test_the_dataset_is_never_sampled():
    """Data of nothing but NaN give the same weights, all finite."""
    runs = []
    for spoilt in (False, True):
        dataset = flat_dataset()
        if spoilt:
            for name in ("observations", "action", "reward"):
                getattr(dataset, name)[:] = math.nan
        run = OnlineRun(dataset, seed=0)
        sac.train(sac.Config(online_steps=20, start_steps=5, hidden=(8,), batch_size=8), run)
        assert run.objects["buffer"].offline_size == 0
        assert len(run.logged) == 15
        runs.append(run)
    for name in ("networks.actor", "networks.critic", "networks.alpha"):
        for a, b in zip(*[run.objects[name].parameters() for run in runs]):
            assert torch.equal(a, b)
            assert torch.isfinite(a).all()


def test_random_start_then_the_policy():
    run = OnlineRun(flat_dataset(high=3.0), seed=0)
    sac.train(sac.Config(online_steps=330, start_steps=320, hidden=(8,), batch_size=8), run)
    assert len(run.logged) == 10 == run.update
    start = np.array(run.env.actions[:320])
    assert np.abs(start).max() <= 3
    assert np.abs(start).max() > 2.9
    assert start.std() == pytest.approx(3 / math.sqrt(3), rel=0.1)  # uniform on [-3, 3]
    assert run.objects["buffer"].action.numpy() == pytest.approx(np.array(run.env.actions) / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"updates": 5}, "updates 5: SAC has no offline phase"),
        ({"alpha": -0.1}, "alpha -0.1: must not be negative"),
        ({"updates_per_step": 0}, "updates_per_step 0: must be at least 1"),
        ({"init_alpha": 0.0}, "init_alpha 0.0: must be above 0"),
    ],
)
def test_unusable_options_are_refused(tiny, run_file, option, message):
    done = run_file("sac", *small(tiny, **ONLINE | option))
    assert done.returncode == 2
    assert message in done.stderr


# --- whole runs ---


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """The results folder of a run that nothing disturbed."""
    results = tmp_path_factory.mktemp("sac")
    assert run_file_in(results, *small(tiny, **ONLINE)) == 0
    return results


def run_file_in(results, *options: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(sac.Config, sac.train, sac.PRESETS, [*options, "--results", str(results), "--keep-checkpoint", "true"])
    return end.value.code


def test_its_records(straight):
    folder = only_run(straight)
    rows = pd.read_parquet(folder / "episodes.parquet")
    points = rows.groupby(["update", "env_step", "final"]).size().to_dict()
    assert points == {(0, 200, False): 2, (190, 400, False): 2, (220, 430, True): 3}
    state = checkpoint(folder)
    assert state["objects"]["buffer"]["online_size"] == 430
    assert state["objects"]["networks.alpha"]["log"].item() != 0
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert metrics["losses/critic"].notna().sum() == 5


def test_no_transition_of_the_dataset_is_stored(straight):
    """Rewards and observations are Pendulum's for the actions done, which cover the whole range at first."""
    stored = checkpoint(only_run(straight))["objects"]["buffer"]
    cosine, sine, speed = stored["observations"][0::2].numpy().T
    torque = 2 * stored["action"][:, 0].numpy()
    cost = np.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * torque**2
    assert stored["reward"].numpy() == pytest.approx(-cost, rel=1e-3, abs=1e-3)
    first = stored["action"][:210, 0]
    assert (first.min(), first.max()) == (pytest.approx(-1, abs=0.05), pytest.approx(1, abs=0.05))


def test_the_kept_policy_repeats_the_score(straight):
    assert_kept_policy_repeats_the_score(only_run(straight))


def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path, straight, monkeypatch):
    """Killed at one of the first updates, by SIGKILL, and after a checkpoint that has updates behind it."""
    args = small(tiny, **ONLINE)
    with dying_at(monkeypatch, "log", 3):
        run_file("sac", *args)
    kill("sac", args, tmp_path / "results", env_step=250)
    with dying_at(monkeypatch, "log", 200):
        run_file("sac", *args)
    torch.randn(17)  # whatever else happened to the global stream between two starts
    assert run_file("sac", *args).returncode == 0
    assert "resuming after environment step 400" in (only_run(tmp_path / "results") / "log.txt").read_text()
    assert_same_run(straight, tmp_path / "results")


@pytest.mark.parametrize(("options", "value"), [({"alpha": 0.3}, 0.3), ({"init_alpha": 0.05, "lr": 1e-9}, 0.05)])
def test_a_fixed_temperature_stays_and_a_tuned_one_starts_where_told(tiny, run_file, tmp_path, options, value):
    assert run_file("sac", *small(tiny, **ONLINE | options | {"online_steps": 230})).returncode == 0
    seen = pd.read_parquet(only_run(tmp_path / "results") / "metrics.parquet")["policy/alpha"].dropna().to_list()
    assert seen == pytest.approx([value] * len(seen))
    assert seen

"""d3rlpy's side of `test_d3rlpy_parity.py`: `python d3rlpy_oracle.py FOLDER`, in an environment with d3rlpy 2.8.1.

For every `NAME.npz` in the folder, which holds the weights a hoard file began with, its batches and its draws, d3rlpy
makes the same updates in float64 and leaves `NAME.peer.npz`: losses, gradients and weights. Nothing of hoard is needed.

Where d3rlpy departs from what hoard computes, the place is marked DEPARTURE and says how; the rest is its own code.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.models.encoders import VectorEncoderFactory
from d3rlpy.models.torch.distributions import SquashedGaussianDistribution
from d3rlpy.models.torch.policies import ActionOutput
from d3rlpy.optimizers import AdamFactory
from d3rlpy.torch_utility import TorchMiniBatch, TorchTrajectoryMiniBatch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

KEPT = (1, 2, 100)


class Draws:
    """Random numbers handed out in order, instead of torch's own, while `use` is in force."""

    def __init__(self) -> None:
        self.queue: list[Tensor] = []

    def next(self, shape: Any) -> Tensor:
        drawn = self.queue.pop(0)
        assert drawn.shape == torch.Size(shape), (drawn.shape, shape)
        return drawn

    @contextmanager
    def use(self, queue: list[Tensor]):
        normal = torch.distributions.normal
        before = torch.randn, normal._standard_normal, torch.Tensor.uniform_
        self.queue = list(queue)
        torch.randn = lambda shape, **_: self.next(shape)
        normal._standard_normal = lambda shape, **_: self.next(shape)
        torch.Tensor.uniform_ = lambda zeros, low, high: zeros.copy_(self.next(zeros.shape) * (high - low) + low)
        try:
            yield
        finally:
            torch.randn, normal._standard_normal, torch.Tensor.uniform_ = before
        assert not self.queue, "a draw was not asked for"


class Peer(ABC):
    """An algorithm of d3rlpy and the names of its parameters in the exchanged files."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told, self.draws, self.gradients = told, Draws(), {}
        self.losses: dict[str, float] = {}
        o = told["options"]
        encoder = VectorEncoderFactory(hidden_units=list(o["hidden"]), activation="relu")
        self.impl = self.make(o, encoder)
        self.modules = self.impl._modules
        for thing in vars(self.modules).values():
            if isinstance(thing, nn.Module):
                thing.double()
        self.names = {parameter: name for name, parameter in self.parameters().items()}
        self.adapt()

    @abstractmethod
    def make(self, o: dict[str, Any], encoder: VectorEncoderFactory) -> Any:
        """d3rlpy's implementation with these options."""

    def adapt(self) -> None:  # noqa: B027  most peers need nothing
        """Change once what departs in the finished implementation."""

    def create(self, config: Any) -> Any:
        algo = config.create(device=False)
        algo.create_impl((self.told["obs_dim"],), self.told["action_dim"])
        return algo._impl

    def parameters(self) -> dict[str, nn.Parameter]:
        found: dict[str, nn.Parameter] = {}
        m = self.modules
        policy = getattr(m, "policy", None) or getattr(m, "imitator", None)
        groups = {"policy": policy, "value": getattr(m, "value_func", None)}
        groups["targ_policy"] = getattr(m, "targ_policy", None)
        for name in ("q_funcs", "targ_q_funcs"):
            for i, head in enumerate(getattr(m, name, [])):
                groups[f"{name.removesuffix('_funcs')}{i}"] = head
        for name, module in groups.items():
            if module is None:
                continue
            for kind, word in ((nn.Linear, "layer"), (nn.LayerNorm, "norm")):
                for k, layer in enumerate(one for one in module.modules() if isinstance(one, kind)):
                    found |= {f"{name}/{word}{k}/weight": layer.weight, f"{name}/{word}{k}/bias": layer.bias}
            if isinstance(getattr(module, "_logstd", None), nn.Parameter):
                found[f"{name}/log_std"] = module._logstd
        for name in ("log_temp", "log_alpha"):
            if f"start:{name}" in self.told["arrays"]:  # d3rlpy's AWAC carries a temperature that it does not use
                found[name] = next(getattr(m, name).parameters())
        return found

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(torch.as_tensor(arrays[f"start:{name}"]).reshape(parameter.shape))

    def batch(self, b: dict[str, Tensor]) -> Any:
        column = lambda name: b[name][:, None] if name in b else torch.zeros(len(b["obs"]), 1).double()  # noqa: E731
        return TorchMiniBatch(
            observations=b["obs"],
            actions=b["action"],
            rewards=column("reward"),
            next_observations=b["next_obs"],
            next_actions=b.get("next_action", torch.zeros_like(b["action"])),
            returns_to_go=column("return_to_go"),
            terminals=column("terminated"),
            intervals=torch.ones(len(b["obs"]), 1).double(),
            device="cpu:0",
        )

    def order(self, noise: list[Tensor]) -> list[Tensor]:
        """hoard's draws of an update in the order in which d3rlpy asks for them."""
        return noise

    def step(self, batch: Any, number: int) -> None:
        self.losses = self.impl.inner_update(batch, number)


@contextmanager
def gradients_kept(peer: Peer):
    """Keep every gradient as it is when an optimiser steps."""
    wrapper = d3rlpy.optimizers.optimizers.OptimizerWrapper
    before = wrapper.step

    def step(self: Any) -> None:
        hook = self._optim.register_step_pre_hook(lambda optimizer, *_: keep(optimizer))
        before(self)
        hook.remove()

    def keep(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter in peer.names:
                    peer.gradients[peer.names[parameter]] = parameter.grad.clone()

    wrapper.step = step
    try:
        yield
    finally:
        wrapper.step = before


# --- the algorithms ---


class IQL(Peer):
    def make(self, o, encoder):
        impl = self.create(
            d3rlpy.algos.IQLConfig(
                actor_learning_rate=o["lr"], critic_learning_rate=o["lr"], actor_encoder_factory=encoder,
                critic_encoder_factory=encoder, value_encoder_factory=encoder, gamma=o["discount"], tau=o["target_tau"],
                expectile=o["expectile"], weight_temp=o["beta"], max_weight=o["max_weight"],
            )
        )  # fmt: skip
        policy = impl._modules.policy

        def forward(x: Tensor) -> ActionOutput:
            # DEPARTURE: d3rlpy passes its log-std through a sigmoid to [-5, 2]; the papers' code, and ours, clips it.
            mu = policy._mu(policy._encoder(x))
            return ActionOutput(mu, torch.tanh(mu), policy._logstd.clamp(o["log_std_min"], 2.0))

        policy.forward = forward
        return impl

    def step(self, batch, number):
        impl, m = self.impl, self.modules
        if self.told["options"]["update_order"] == "corl":
            # DEPARTURE: d3rlpy takes Q's target from V before its step and the advantage from V after it. CORL takes
            # both before; the advantage is therefore asked for first.
            with torch.no_grad():
                weight = impl._compute_weight(batch)
            impl._compute_weight = lambda _: weight
            metrics = impl.update_critic(batch)
            metrics |= impl.update_actor(batch)
            del impl._compute_weight
            self.losses = {"critic": metrics["q_loss"], "value": metrics["v_loss"], "actor": metrics["actor_loss"]}
        else:
            # DEPARTURE: the authors step V first and take both from the new V, so d3rlpy's two losses of one step are
            # made in two.
            optimizer = m.critic_optim
            optimizer.optim.zero_grad(set_to_none=True)
            value_loss = impl.compute_value_loss(batch)
            value_loss.backward()
            optimizer.step()
            optimizer.optim.zero_grad(set_to_none=True)
            backup = impl.compute_target(batch)
            q_loss = impl._q_func_forwarder.compute_error(
                observations=batch.observations, actions=batch.actions, rewards=batch.rewards, target=backup,
                terminals=batch.terminals, gamma=impl._gamma**batch.intervals,
            )  # fmt: skip
            q_loss.backward()
            optimizer.step()
            metrics = impl.update_actor(batch)
            self.losses = {"critic": q_loss.item(), "value": value_loss.item(), "actor": metrics["actor_loss"]}
        impl.update_critic_target()


class BC(Peer):
    def make(self, o, encoder):
        return self.create(d3rlpy.algos.BCConfig(learning_rate=o["lr"], encoder_factory=encoder))

    def step(self, batch, number):
        self.losses = {"actor": self.impl.inner_update(batch, number)["loss"]}


def own_temperature(peer: Peer) -> None:
    """DEPARTURE: d3rlpy's loss of the temperature is exp(log alpha) * ...; the authors' second version of SAC, CORL,
    stable-baselines3 and hoard descend log alpha * ..., whose gradient lacks the factor alpha."""
    impl, m = peer.impl, peer.modules

    def update_temp(log_prob: Tensor) -> Tensor:
        m.temp_optim.zero_grad()
        wanted = peer.told["options"]["target_entropy"] * impl._action_size
        loss = -(next(m.log_temp.parameters()) * (log_prob.detach() + wanted)).mean()
        loss.backward()
        peer.losses["alpha"] = loss.item()
        peer.step_temperature()
        return loss

    impl.update_temp = update_temp


class SAC(Peer):
    def make(self, o, encoder):
        return self.create(
            d3rlpy.algos.SACConfig(
                actor_learning_rate=o["lr"], critic_learning_rate=o["lr"], temp_learning_rate=o["lr"],
                actor_encoder_factory=encoder, critic_encoder_factory=encoder, gamma=o["discount"],
                tau=o["target_tau"], initial_temperature=o["init_alpha"],
            )
        )  # fmt: skip

    def order(self, noise):
        return [noise[1], noise[0]]  # d3rlpy draws for its target first

    def step_temperature(self) -> None:
        """Later, see `step`; until then the actor's loss adds to the gradient."""
        self.of_temperature = next(self.modules.log_temp.parameters()).grad.clone()

    def adapt(self):
        own_temperature(self)
        loss_of = self.impl.compute_critic_loss

        def halved(batch: Any, target: Tensor) -> Any:
            # DEPARTURE: d3rlpy sums the errors of the two heads; stable-baselines3 takes half of the sum.
            loss = loss_of(batch, target)
            return type(loss)(critic_loss=0.5 * loss.critic_loss)

        self.impl.compute_critic_loss = halved

    def step(self, batch, number):
        impl = self.impl

        def log_prob_from_raw_y(self: Any, raw: Tensor) -> Tensor:
            # DEPARTURE: d3rlpy computes log(1 - tanh(u)^2) exactly; stable-baselines3 and hoard's SAC add 1e-6 to it.
            jacobian = torch.log(1 - torch.tanh(raw).square() + 1e-6)
            return (self._dist.log_prob(raw) - jacobian).sum(dim=-1, keepdims=True)

        before = SquashedGaussianDistribution._log_prob_from_raw_y
        SquashedGaussianDistribution._log_prob_from_raw_y = log_prob_from_raw_y
        metrics = impl.update_critic(batch)
        # DEPARTURE: d3rlpy's actor sees the temperature after its step, stable-baselines3's before.
        metrics |= impl.update_actor(batch)
        next(self.modules.log_temp.parameters()).grad = self.of_temperature
        self.modules.temp_optim.step()
        impl.update_critic_target()
        SquashedGaussianDistribution._log_prob_from_raw_y = before
        self.losses |= {"critic": metrics["critic_loss"], "actor": metrics["actor_loss"]}


class CQL(Peer):
    config = staticmethod(d3rlpy.algos.CQLConfig)

    def make(self, o, encoder):
        return self.create(
            self.config(
                actor_learning_rate=o["actor_lr"], critic_learning_rate=o["lr"], temp_learning_rate=o["actor_lr"],
                alpha_learning_rate=o["lr"] if o["target_gap"] is not None else 0.0, actor_encoder_factory=encoder,
                critic_encoder_factory=encoder, gamma=o["discount"], tau=o["target_tau"],
                initial_temperature=o["init_alpha"], initial_alpha=1.0, alpha_threshold=o["target_gap"] or 0.0,
                conservative_weight=o["cql_alpha"], n_action_samples=o["cql_actions"],
                soft_q_backup=o["backup_entropy"], max_q_backup=o["max_target"],
            )
        )  # fmt: skip

    def order(self, noise):
        of_actor, following, uniform, present, at_next = noise
        samples = [present.transpose(0, 1), at_next.transpose(0, 1), uniform.flatten(0, 1)]
        following = following.transpose(0, 1) if self.told["options"]["max_target"] else following[:, 0]
        return [of_actor, following, *samples]

    def step_temperature(self) -> None:
        self.modules.temp_optim.step()

    def adapt(self):
        own_temperature(self)
        if not self.told["options"]["backup_entropy"] and not self.told["options"]["max_target"]:
            # DEPARTURE: without entropy in the target d3rlpy asks the policy's mean, CORL and hoard a sample.
            def target(batch: Any) -> Tensor:
                with torch.no_grad():
                    dist = d3rlpy.models.torch.build_squashed_gaussian_distribution(
                        self.modules.policy(batch.next_observations)
                    )
                    forwarder = self.impl._targ_q_func_forwarder
                    return forwarder.compute_target(batch.next_observations, dist.sample(), reduction="min")

            self.impl.compute_target = target

    def step(self, batch, number):
        # DEPARTURE: d3rlpy steps the critic first; CQL's own code and CORL step the temperature and the actor before.
        metrics = self.impl.update_actor(batch)
        metrics |= self.impl.update_critic(batch)
        self.impl.update_critic_target()
        self.losses |= {"critic": metrics["critic_loss"], "actor": metrics["actor_loss"]}
        self.losses |= {"conservative": metrics["conservative_loss"]}


class CalQL(CQL):
    config = staticmethod(d3rlpy.algos.CalQLConfig)


class AWAC(Peer):
    def make(self, o, encoder):
        impl = self.create(
            d3rlpy.algos.AWACConfig(
                actor_learning_rate=o["lr"], critic_learning_rate=o["lr"], actor_encoder_factory=encoder,
                critic_encoder_factory=encoder, gamma=o["discount"], tau=o["target_tau"], lam=1 / o["beta"],
                n_action_samples=1,
            )
        )  # fmt: skip
        policy, m = impl._modules.policy, impl._modules

        def forward(x: Tensor) -> ActionOutput:
            # DEPARTURE: d3rlpy bounds the mean by tanh and the log-std by a sigmoid; CORL's is plain, the log-std cut.
            mu = policy._mu(policy._encoder(x))
            return ActionOutput(mu, mu, policy._logstd.clamp(-20.0, 2.0))

        def compute_target(batch: Any) -> Tensor:
            # DEPARTURE: d3rlpy inherits SAC's target, with a squashed sample; AWAC's policy is a plain Gaussian.
            with torch.no_grad():
                dist = d3rlpy.models.torch.build_gaussian_distribution(m.policy(batch.next_observations))
                forwarder = impl._targ_q_func_forwarder
                return forwarder.compute_target(batch.next_observations, dist.sample(), reduction="min")

        def compute_weights(obs: Tensor, action: Tensor) -> Tensor:
            # DEPARTURE: d3rlpy normalises the weights by a softmax over the batch; CORL takes exp and a cap.
            with torch.no_grad():
                q = impl._q_func_forwarder.compute_expected_q(obs, action, "min")
                dist = d3rlpy.models.torch.build_gaussian_distribution(m.policy(obs))
                value = impl._q_func_forwarder.compute_expected_q(obs, dist.sample_n(1)[:, 0], "min")
                # DEPARTURE: d3rlpy's loss is a sum over the batch, CORL's the mean.
                return ((q - value) / impl._lam).exp().clamp(max=o["max_weight"]) / len(q)

        policy.forward, impl.compute_target, impl._compute_weights = forward, compute_target, compute_weights
        return impl

    def order(self, noise):
        return [noise[0], noise[1][None]]

    def step(self, batch, number):
        metrics = self.impl.inner_update(batch, number)
        self.losses = {"critic": metrics["critic_loss"], "actor": metrics["actor_loss"]}


class TD3BC(Peer):
    def make(self, o, encoder):
        return self.create(d3rlpy.algos.TD3PlusBCConfig(**self.common(o, encoder), alpha=o["alpha"]))

    def common(self, o, encoder) -> dict[str, Any]:
        return {
            "actor_learning_rate": o["lr"], "critic_learning_rate": o["lr"], "actor_encoder_factory": encoder,
            "critic_encoder_factory": encoder, "gamma": o["discount"], "tau": o["target_tau"],
            "target_smoothing_sigma": o["policy_noise"], "target_smoothing_clip": o["noise_clip"],
            "update_actor_interval": o["policy_delay"],
        }  # fmt: skip

    def step(self, batch, number):
        metrics = self.impl.inner_update(batch, number)
        self.losses = {name.removesuffix("_loss"): metrics[name] for name in metrics if name.endswith("_loss")}


class ReBRAC(TD3BC):
    def make(self, o, encoder):
        normed = VectorEncoderFactory(hidden_units=list(o["hidden"]), activation="relu", use_layer_norm=True)
        options = self.common(o, encoder) | {"critic_encoder_factory": normed}
        if o["critic_lr"] is not None:
            options["critic_learning_rate"] = o["critic_lr"]
        impl = self.create(
            d3rlpy.algos.ReBRACConfig(**options, actor_beta=o["actor_bc_coef"], critic_beta=o["critic_bc_coef"])
        )
        for net in (impl._modules.q_funcs, impl._modules.targ_q_funcs):
            for layer in net.modules():
                if isinstance(layer, nn.LayerNorm):
                    layer.eps = 1e-6  # DEPARTURE: torch's default is 1e-5, Flax's, which the authors use, 1e-6
        return impl


class PRDC(TD3BC):
    def make(self, o, encoder):
        return self.create(d3rlpy.algos.PRDCConfig(**self.common(o, encoder), alpha=o["alpha"], beta=o["beta"]))

    def load(self, arrays):
        super().load(arrays)
        keys = np.concatenate([self.told["options"]["beta"] * arrays["data:obs"], arrays["data:action"]], axis=1)
        self.impl._nbsr = NearestNeighbors(algorithm="auto").fit(keys)


class DecisionTransformer(Peer):
    def make(self, o, encoder):
        token = VectorEncoderFactory(hidden_units=[o["width"]], exclude_last_activation=True)
        config = d3rlpy.algos.DecisionTransformerConfig(
            learning_rate=o["lr"], encoder_factory=token, optim_factory=AdamFactory(clip_grad_norm=o["clip_norm"]),
            context_size=o["context"], max_timestep=o["time_rows"] - 2, num_heads=o["heads"], num_layers=o["blocks"],
            attn_dropout=0.0, resid_dropout=0.0, embed_dropout=0.0,
            activation_type="gelu",  # DEPARTURE: d3rlpy's default is ReLU, GPT-2's GELU
        )  # fmt: skip
        impl = self.create(config)
        for layer in impl._modules.transformer.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = 1e-5  # DEPARTURE: d3rlpy has 0.003 in its blocks
        decayed = [p for p in impl._modules.transformer.parameters() if p.ndim > 1]
        plain = [p for p in impl._modules.transformer.parameters() if p.ndim == 1]
        # DEPARTURE: Adam by default; the decay, its groups and epsilon are hoard's.
        groups = [{"params": decayed, "weight_decay": o["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
        impl._modules.optim._optim = torch.optim.AdamW(groups, lr=o["lr"], eps=1e-6)
        loss_of = type(impl).compute_loss

        def compute_loss(batch: Any) -> Tensor:
            # DEPARTURE: a sum over the action's dimensions and a mean over all steps, padded ones too; the paper's
            # code, and ours, takes the mean over the real steps' dimensions.
            return loss_of(impl, batch) * batch.masks.numel() / batch.masks.sum() / impl._action_size

        impl.compute_loss = compute_loss
        return impl

    def parameters(self):
        net, found = self.modules.transformer, {}
        layers = {"embed_return": net._rtg_embed, "embed_obs": net._encoder._layers[0]}
        layers |= {"embed_action": net._action_embed, "embed_norm": net._embed_ln, "action_head": net._output}
        layers["norm"] = net._gpt2._layer_norm
        for i, block in enumerate(net._gpt2._transformer):
            a = block._attention
            layers |= {f"block{i}/q": a._q, f"block{i}/k": a._k, f"block{i}/v": a._v, f"block{i}/out": a._proj}
            layers |= {f"block{i}/up": block._mlp._l1, f"block{i}/down": block._mlp._l2}
            layers |= {f"block{i}/norm1": block._layer_norm1, f"block{i}/norm2": block._layer_norm2}
        for name, layer in layers.items():
            found[f"{name}/weight"], found[f"{name}/bias"] = layer.weight, layer.bias
        return found | {"time": net._position_encoding._embed.weight}

    def batch(self, b):
        return TorchTrajectoryMiniBatch(
            observations=b["obs"], actions=b["action"], rewards=b["reward"][..., None],
            returns_to_go=b["return_to_go"][..., None], terminals=b["terminated"][..., None],
            timesteps=b["timestep"].long(), masks=b["mask"], device="cpu:0",
        )  # fmt: skip

    def step(self, batch, number):
        self.losses = {"actor": self.impl.inner_update(batch, number)["loss"]}


PEERS = {
    "iql": IQL, "bc": BC, "sac": SAC, "cql": CQL, "cal_ql": CalQL, "awac": AWAC, "td3_bc": TD3BC, "rebrac": ReBRAC,
    "prdc": PRDC, "decision_transformer": DecisionTransformer,
}  # fmt: skip


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for file in sorted(folder.glob("*.json")):
        arrays = dict(np.load(file.with_suffix(".npz")))
        told = json.loads(file.read_text()) | {"arrays": arrays}
        peer = PEERS[told["peer"]](told)
        peer.load(arrays)
        out: dict[str, np.ndarray] = {}
        with gradients_kept(peer):
            for number in range(1, max(KEPT) + 1):
                prefix = f"{number}:"
                mine = {k.removeprefix(prefix): torch.as_tensor(v) for k, v in arrays.items() if k.startswith(prefix)}
                batch = peer.batch({k.removeprefix("batch:"): v for k, v in mine.items() if k.startswith("batch:")})
                noise = [mine[f"noise:{k}"] for k in range(sum(name.startswith("noise:") for name in mine))]
                peer.gradients, peer.losses = {}, {}
                with peer.draws.use(peer.order(noise)):
                    peer.step(batch, number)
                if number in KEPT:
                    out |= {f"{number}:loss:{name}": np.asarray(float(v)) for name, v in peer.losses.items()}
                    out |= {f"{number}:grad:{name}": v.detach().numpy() for name, v in peer.gradients.items()}
                    out |= {f"{number}:weight:{k}": v.detach().numpy().copy() for k, v in peer.parameters().items()}
        np.savez(file.with_suffix(".peer.npz"), **out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

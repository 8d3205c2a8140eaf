"""Soft actor-critic written without the algorithm files' classes: separate critics, torch's distributions."""

from __future__ import annotations

import copy

import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform


class PlainSAC:
    """Two critics and a tuned temperature, from the weights that a run of rlpd.py or moorl.py began with."""

    def __init__(self, start: dict[str, torch.nn.Module], lr: float, dim: int) -> None:
        self.actor = [(layer.weight, layer.bias) for layer in start["networks.actor"].layers]
        self.critics = self.members(start["networks.critic"])
        self.targets = self.members(copy.deepcopy(start["networks.critic"]))
        self.log_alpha = start["networks.alpha"].log
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

    def critic_step(self, batch, noise) -> None:
        s, a, r, n, d = (batch[k] for k in ("obs", "action", "reward", "next_obs", "terminated"))
        with torch.no_grad():
            next_action, log_prob = self.policy(n, noise)
            next_q = torch.minimum(*self.q(self.targets, n, next_action))
            y = r + 0.99 * (1 - d) * (next_q - self.log_alpha.exp() * log_prob)
        one, two = self.q(self.critics, s, a)
        self.descend(0, ((one - y) ** 2).mean() / 2 + ((two - y) ** 2).mean() / 2)
        for slow, fast in zip(flat(self.targets[0] + self.targets[1]), flat(self.critics[0] + self.critics[1])):
            slow.data = 0.995 * slow.data + 0.005 * fast.data

    def actor_step(self, obs, noise, target_entropy: float) -> None:
        """`target_entropy` is per action dimension."""
        alpha = self.log_alpha.exp().detach()
        action, log_prob = self.policy(obs, noise)
        self.descend(1, (alpha * log_prob - torch.minimum(*self.q(self.critics, obs, action))).mean())
        self.descend(2, self.log_alpha.exp() * (-log_prob.detach().mean() - target_entropy * self.dim))

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


def stacked(critic) -> list[torch.Tensor]:
    """Weights and biases of both members of a critic, in the order of `PlainSAC`."""
    return [t for i in range(2) for w, b in zip(critic.weights, critic.biases) for t in (w[i].T, b[i, 0])]


def layers(actor) -> list[torch.Tensor]:
    return [p for layer in actor.layers for p in (layer.weight, layer.bias)]


def assert_close(mine, theirs) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-7)

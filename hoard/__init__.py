"""Hybrid and Offline Algorithms for Reinforcement learning from Data.

data = hoard.load("hoard/pendulum/mixed-v0")
run = hoard.train("iql", "hoard/pendulum/mixed-v0", updates=5000)
policy = hoard.load_policy(run)
action = policy(obs)
hoard.results("results")
"""

from hoard.api import evaluate, load, load_policy, paths, results, train, watch

__version__ = "0.2.0"

__all__ = ["__version__", "evaluate", "load", "load_policy", "paths", "results", "train", "watch"]

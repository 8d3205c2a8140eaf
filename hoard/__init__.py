"""Hybrid and Offline Algorithms for Reinforcement learning from Data."""

__version__ = "0.2.0"

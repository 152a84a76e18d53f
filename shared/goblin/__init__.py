"""Goblin: one OpenAI-compatible endpoint and one job topic in front of many GPU clouds."""

__version__ = "0.1.0"

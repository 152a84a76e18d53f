"""Vast.ai: a market of hosts' machines. The highest bid runs; an on-demand instance outranks every bid.

Source: vast-ai/docs at 2026-08-07, vastai 1.9.1 and measurements by others until 2026-08-27; read 2026-11-23.
"""

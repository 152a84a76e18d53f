"""Vast.ai: a market of other people's machines, where the highest bid runs and who pays in full outranks all bids.

Source: vast-ai/docs at 2026-08-07, vastai 1.9.1 and what others measured until 2026-08-27; read 2026-11-23.
"""

"""Shared by several rooms: nouns with their units, errors, events, and ports."""

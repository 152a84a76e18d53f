"""Immutable nouns of this room, with their units. No I/O, no decisions."""

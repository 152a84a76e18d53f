"""Data classes of this room, frozen, with their units. No I/O, no decisions."""

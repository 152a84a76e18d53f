"""Value types of `jobs`, frozen, with their units. No I/O, no decisions."""

"""Domain of the gateway: frozen nouns, with their units. No I/O, no decisions."""

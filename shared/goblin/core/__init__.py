"""What two rooms share: nouns with their units, errors, events, and the ports that more than one room needs."""

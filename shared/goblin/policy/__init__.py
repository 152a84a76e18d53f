"""Pure decisions: facts, time and randomness in, a decision with its reasons out."""

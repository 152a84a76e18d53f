"""Pure decisions of this room: arguments in, a decision with its reasons out. No I/O, no clock."""

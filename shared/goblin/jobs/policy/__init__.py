"""Decisions of `jobs`: arguments in, a decision with its reasons out. No I/O, no clock."""

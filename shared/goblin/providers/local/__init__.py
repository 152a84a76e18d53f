"""This machine as a compute provider: each instance is a process."""

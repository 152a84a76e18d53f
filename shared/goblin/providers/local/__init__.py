"""This machine as a provider of instances: each is a process."""

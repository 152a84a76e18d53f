"""Runs one attempt of a job on a machine that nobody trusts: one token, signed URLs, nothing else."""

"""Runs one attempt of a job on an untrusted machine: it holds one token and signed URLs, no other key."""

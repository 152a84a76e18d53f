"""Fly.io: the app that is always on, and its computed bill."""

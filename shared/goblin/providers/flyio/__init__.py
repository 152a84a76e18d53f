"""Fly.io: inference in an app that is always on, and its computed bill."""

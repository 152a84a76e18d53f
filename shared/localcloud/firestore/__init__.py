"""Firestore on loopback for the unmodified Google clients; state in SQLite."""

from localcloud.firestore.indexes import CompositeIndex
from localcloud.firestore.server import Firestore
from localcloud.firestore.ttl import TtlField

__all__ = ["CompositeIndex", "Firestore", "TtlField"]

"""Google's Pub/Sub, Firestore, Storage, Secret Manager and Scheduler on loopback, for laptops and tests.

Real wire protocols for the unmodified Python clients; state in SQLite and files, safe against `kill -9`.
"""

__version__ = "0.1.0"

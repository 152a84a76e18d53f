"""Adapters to Firestore: one file for each group of collections."""

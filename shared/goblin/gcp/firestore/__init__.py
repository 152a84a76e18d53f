"""Firestore: one file for each group of documents."""

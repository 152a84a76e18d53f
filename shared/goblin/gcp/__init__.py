"""Adapters to Google's services: Firestore, Pub/Sub, Cloud Storage, Cloud Run, Secret Manager, OIDC."""

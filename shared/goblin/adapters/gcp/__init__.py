"""Google's services: Firestore, Pub/Sub, Cloud Storage, Secret Manager."""

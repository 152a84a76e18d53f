"""Model versions, the production pointer, and the rollout to model servers."""

"""RunPod: inference on serverless endpoints, rented pods, bills."""

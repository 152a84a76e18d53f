"""RunPod: serverless endpoints, rented pods, bills."""

"""What runs on a rented host: one attempt at a training job, with one token and signed URLs."""

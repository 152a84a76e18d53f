"""Training and batch jobs on rented GPUs: life cycle, placement, worker API, checkpoints, batch output."""

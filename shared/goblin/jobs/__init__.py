"""Training and batch jobs on rented GPUs: lifecycle, placement, worker API, checkpoints and batch output."""

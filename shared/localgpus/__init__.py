"""Markets of rented GPUs on loopback: Vast.ai and RunPod as their clients meet them, with machines that are processes."""

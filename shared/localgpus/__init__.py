"""Markets of rented GPUs on loopback: Vast.ai and RunPod as clients meet them, with processes for machines."""

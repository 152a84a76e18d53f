"""Local GPUs: the APIs of Vast.ai and RunPod on loopback. A rented machine is a process of this computer."""

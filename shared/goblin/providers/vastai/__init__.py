"""Vast.ai: servers on rented instances, the spot market, bills, webhooks."""

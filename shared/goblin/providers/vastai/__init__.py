"""Vast.ai: inference servers on rented instances, the spot market, bills, webhooks."""

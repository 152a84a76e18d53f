"""Load facts, ask policy, apply the answer."""

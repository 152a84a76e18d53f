"""One OpenAI-compatible endpoint: routing, failover, streams, cache, idempotency, keys, admission, receipts."""

"""Who serves tokens or rents GPUs: one file is one provider, found by its name."""

"""Who rents out instances: one file is one provider."""

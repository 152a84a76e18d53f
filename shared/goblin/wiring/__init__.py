"""Settings, and what builds every object from them, once per process. Nothing connects at import."""

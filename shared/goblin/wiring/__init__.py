"""Settings, and the functions that build every object from them, once per process. Nothing connects at import."""

"""llama.cpp servers: inference, and loading of promoted models."""

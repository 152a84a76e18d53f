"""llama.cpp servers: inference, and loading promoted models."""

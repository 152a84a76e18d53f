"""OpenAI, and servers that copy its API; its bill."""

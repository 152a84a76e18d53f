"""OpenAI and servers with a compatible API; OpenAI's bill."""

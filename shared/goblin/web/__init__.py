"""Our own wire: HTTP plumbing, OpenAI's and Anthropic's shapes, the jobs API, metrics, traces, pages."""

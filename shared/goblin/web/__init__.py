"""Our own wire: HTTP helpers, OpenAI's and Anthropic's formats, the jobs API, metrics, traces, pages."""

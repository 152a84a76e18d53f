"""Code that the provider folders share: HTTP, OpenAI's wire format, error parsing, probes, bills."""

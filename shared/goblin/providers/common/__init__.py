"""What provider folders share: HTTP, OpenAI's wire, error reading, probes, bills."""

"""Each file translates one outside API into our nouns."""

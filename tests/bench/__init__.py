"""Benches: `./goblin bench NAME`. Each module has `run(words) -> dict`, `table(result) -> str`, perhaps `plot`."""

"""The `goblin` command. It only parses and prints: decisions live in policy, work in services."""

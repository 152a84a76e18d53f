"""The `goblin` command. It only talks: decisions live in policy, work in services."""

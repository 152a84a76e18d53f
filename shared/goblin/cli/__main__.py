"""`python -m goblin.cli` is the `goblin` command."""

from goblin.cli.main import main

main(prog_name="goblin")

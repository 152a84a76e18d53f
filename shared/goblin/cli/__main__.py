"""Run the `goblin` command as `python -m goblin.cli`."""

from goblin.cli.main import main

main(prog_name="goblin")

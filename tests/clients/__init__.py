"""Real programs, unmodified, against one `goblin up`: run with `./goblin test clients`."""

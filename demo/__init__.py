"""How the demo voice that ships with bark-fast was made: `python -m demo --help`."""

"""How the demo voice that ships with bark-fast was made: `python -m recipes.demo_voice --help`."""

"""The recipe of the demo voice that ships with bark-fast: `python -m recipes.demo_voice --help`."""

"""The commands of `python -m bench`, one a module, and the suite that runs them all.

The first line of a command's docstring is its help; `add_arguments(parser)` adds its options, and
`run(arguments)` does its work and returns the exit status.
"""

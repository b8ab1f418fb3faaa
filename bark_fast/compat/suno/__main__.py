"""`python -m bark_fast.compat.suno`, which was `python -m bark`."""

from bark_fast.compat.suno.cli import cli

if __name__ == "__main__":
    cli()

"""`python -m bark_fast` is the command `bark-fast`."""

from bark_fast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

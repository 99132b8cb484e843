"""`python -m pglab` is the `pglab` command."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 when something failed, 2 for a mistake in the input, 130 after
    Ctrl-C."""
    from pglab.cli.app import run

    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())

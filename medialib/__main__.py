"""python -m medialib agent|server …: the two programs, run from the package."""

from __future__ import annotations

import sys

USAGE = "usage: python -m medialib agent|server [arguments]   (--help after either explains them)"


def medialib_main(argv: list) -> int:
    """Run the program that the first argument names; its exit code."""
    program = argv[0] if argv else ""
    # Each program is imported only when it is wanted: the agent needs nothing of the catalogue.
    if program == "agent":
        from .agent_cli import agent_main

        return agent_main(argv[1:])
    if program == "server":
        from .server_cli import server_main

        return server_main(argv[1:])
    print(USAGE, file=sys.stdout if program in ("-h", "--help") else sys.stderr)
    return 0 if program in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(medialib_main(sys.argv[1:]))

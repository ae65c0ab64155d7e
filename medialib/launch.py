"""Running a program that is one large file without the syntax tree of that file.

Python keeps the tree of the file that it was told to run until the file comes to its end: with
agent.py these are 20 MB of memory for as long as the agent runs, with server.py 40.
"""

from __future__ import annotations

import functools
import sys


class Launched(Exception):
    """Ends the run of the file; never shown to anybody."""


def launch(main) -> None:
    """Exit with the result of `main()`, called when Python has freed the file's syntax tree.

    That is so when an exception has ended the file, and what Python does with an exception that
    nobody handles is up to sys.excepthook. Below a debugger or profiler main() is called at once.
    """
    if sys._getframe(1).f_back is not None:
        sys.exit(main())
    sys.excepthook = functools.partial(_run, main)
    raise Launched


def _run(main, *_unhandled) -> None:
    sys.excepthook = sys.__excepthook__
    try:
        status = main()
    except (Exception, KeyboardInterrupt) as error:  # or Python would speak of an error in its hook
        sys.__excepthook__(type(error), error, error.__traceback__)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    sys.exit(status)

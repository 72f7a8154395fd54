"""Printing that never ends a run."""

import os
import sys


def print_anything() -> None:
    """Let `print` write as escapes what the terminal's encoding lacks: the name of a folder is no reason to stop.

    Without a standard output at all, as some services start programs, what is printed goes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):  # a notebook's has its own ways
            stream.reconfigure(errors="backslashreplace")

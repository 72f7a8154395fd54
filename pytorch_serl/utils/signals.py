"""What stops a run and lets it save: Ctrl-C, SIGTERM, and SIGHUP of a connection that broke."""

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

HANGUP = getattr(signal, "SIGHUP", None)  # there is none on Windows
_blocks: list[list[bool]] = []  # of each block of `uninterrupted` that runs now, what came
STOP_SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number)


def catch_stops() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does; SIGHUP not where nohup has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        print("SIGINT was ignored when this run was started (`command &` in a script); Ctrl-C stops it all the same")
    for number in STOP_SIGNALS:
        if number != HANGUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _hung_up(number: int, frame: Any) -> None:
    """Nothing is left to do when SIGHUP comes once more: kernel and shell both send one."""


def _stop(number: int, frame: Any) -> None:
    _forget_terminal(number)
    raise KeyboardInterrupt


def _forget_terminal(number: int) -> None:
    """After SIGHUP the terminal is gone, and writing to it would fail."""
    if number != HANGUP:
        return
    signal.signal(number, _hung_up)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # a terminal, not a log file or a pipe
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def stop_if_told() -> None:
    """Raise KeyboardInterrupt where one was put off by `uninterrupted`; for a wait in its block that may never end."""
    if any(_blocks):
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let the block finish when Ctrl-C, SIGTERM or SIGHUP comes inside it, then raise KeyboardInterrupt.

    Put it around an update or a write, so that what is saved after Ctrl-C is never half of one, and around what imports
    a large package, which does not survive it. A second signal is raised at once: the block may hang.
    """
    came = []
    _blocks.append(came)

    def note(number, frame):
        _forget_terminal(number)
        came.append(True)
        if len(came) > 1:
            raise KeyboardInterrupt

    caught = [n for n in STOP_SIGNALS if n != HANGUP or signal.getsignal(n) not in (signal.SIG_IGN, _hung_up)]
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield
    finally:
        _blocks.pop()
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # not a SIGHUP that came
                signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def start_deaf(process: BaseProcess) -> None:
    """Start a process, and multiprocessing's resource tracker before it, that signals which stop a run do not end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # its start lets some of them through
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

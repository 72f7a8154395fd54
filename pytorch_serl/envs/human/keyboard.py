"""A human at the terminal, over ssh, too: takes over the arm by keys, says what succeeded, pauses."""

import atexit
import os
import re
import select
import sys
import termios
import tty
from typing import Protocol

import numpy as np

from pytorch_serl.envs.human.human import Human
from pytorch_serl.utils.signals import stop_if_told

POLL_SECONDS = 0.1  # between two looks at whether Ctrl-C came, in a wait for a key
SPEED = 0.5  # of the largest command, per key
MOVES = {
    "w": (0, 1),
    "s": (0, -1),
    "a": (1, 1),
    "d": (1, -1),
    "r": (2, 1),
    "f": (2, -1),
    "u": (3, 1),
    "j": (3, -1),
    "i": (4, 1),
    "k": (4, -1),
    "q": (5, 1),
    "e": (5, -1),
}  # key: continuous entry, direction
GRIPPER = {"c": -1.0, "h": 0.0, "o": 1.0}
# what arrows, function keys and Alt send: several characters, of which none was meant as a key
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\[O])", re.DOTALL)
ESCAPE_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?$")
TAKE_OVER, OTHER_ARM, PAUSE, SUCCESS, FAILURE, DISCARD = "t", "\t", "p", "y", "n", "x"
GO_ON = " \n\r"
HELP = (
    "keys: t take over and hand back | w s a d r f move, u j i k q e turn | c close, o open, h hold | tab other arm | "
    "y success, n failure, x give the episode up | p pause"
)


class Keys(Protocol):
    """Where keys come from."""

    def read(self, timeout: float = 0.0) -> str:
        """The keys pressed since the last call; waits up to `timeout` seconds for a first one."""


class Terminal:
    """The keys of the terminal that the program was started in, each at once and without echo.

    Raises ValueError where standard input is no terminal.
    """

    def __init__(self):
        if not sys.stdin.isatty():
            raise ValueError("--human keyboard reads keys from a terminal, but standard input is none; start it in one")
        self.file = sys.stdin.fileno()
        self.before = termios.tcgetattr(self.file)
        atexit.register(self.close)
        tty.setcbreak(self.file)  # Ctrl-C stays what it is

    def read(self, timeout: float = 0.0) -> str:
        keys = ""
        while select.select([self.file], [], [], 0.0 if keys else timeout)[0]:
            data = os.read(self.file, 1024)
            if not data:
                raise EOFError("the terminal that the keys came from is gone")
            keys += data.decode(errors="ignore")
        return keys

    def close(self) -> None:
        """Give the terminal back as it was."""
        termios.tcsetattr(self.file, termios.TCSADRAIN, self.before)
        atexit.unregister(self.close)


class KeyboardHuman(Human):
    """A `Human` whose device is a `Terminal`, or something else with `read`.

    y and n end the episode. In control, he makes the environment step once for every key that moves something.
    Caps Lock and Shift change nothing; arrows and function keys do nothing.
    """

    yes_or_no, go_on = f"{SUCCESS} or {FAILURE}", "space"
    begun = ""  # the first characters of a key of several

    def _command(self):
        command = self._take(self._keys())
        while command is None and self._idle():
            command = self._take(self._wait())
        return command if self.in_control else None

    def _keys(self, timeout=0.0):
        """The keys pressed since the last call, in small letters."""
        keys = ESCAPE.sub("", self.begun + self.device.read(timeout=timeout))
        begun = ESCAPE_BEGUN.search(keys)
        self.begun = begun[0] if begun else ""
        return keys[: len(keys) - len(self.begun)].lower()

    def _wait(self):
        """Keys, as soon as there are any: Ctrl-C ends the wait, amid a step too."""
        while not (keys := self._keys(timeout=POLL_SECONDS)):
            stop_if_told()
        return keys

    def _take(self, keys):
        """Do what the keys say; returns the action that they make, or None where they move nothing."""
        action, moves = np.zeros((self.arms, self.block), np.float32), False
        for key in keys:
            if key == TAKE_OVER and self.steer and not self.leads:
                self._take_over(not self.in_control)
            elif key == OTHER_ARM and self.arms > 1:
                self._change_arm()
            elif key == PAUSE:
                self._pause()
                return None  # what was typed before the pause moves nothing after it
            elif key in (SUCCESS, FAILURE):
                self.verdict = key == SUCCESS
            elif key == DISCARD:
                self.discard = True
            elif key in MOVES and MOVES[key][0] < self.block - self.grippers:
                entry, direction = MOVES[key]
                action[self.arm, entry] = SPEED * direction
                moves = True
            elif key in GRIPPER and self.grippers:
                action[self.arm, -1] = GRIPPER[key]
                moves = True
        return action.ravel() if moves else None

    def _ask(self):
        self._wait_for(SUCCESS + FAILURE)

    def _wait_for_go(self):
        self._wait_for(GO_ON)

    def _pause(self):
        self.say("paused; p goes on")
        self._wait_for(PAUSE)
        self.say("goes on")

    def _forget(self):
        return PAUSE in self._keys()

    def _wait_for(self, wanted):
        while True:
            for key in self._wait():
                if key in wanted:
                    if key in (SUCCESS, FAILURE):
                        self.verdict = key == SUCCESS
                    return

"""A human with any device: what `--human my_package:make_device` names, or the space mouse beside this file.

`make_device(env)` returns an object with `read()`, which is called at least once a step and never waits. It returns a
dict (docs/devices.md):

    action      (A,) floats in [-1, 1], the environment's whole action; all zero while nothing moves
    in_control  whether the human steers now
    success, failure, discard, pause    optional: True from the press of a button until the next call

`read()` may raise `DeviceGone`, or another OSError or EOFError: the run pauses until the device answers again.
`close()`, if there is one, is called at the end.
"""

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from pytorch_serl.envs.human import keyboard
from pytorch_serl.envs.human.human import Human
from pytorch_serl.utils.signals import stop_if_told

POLL_SECONDS, RETRY_SECONDS = 0.01, 0.5
ENDINGS = {"success", "failure", "discard"}
NAMES = {"y": "success", "n": "failure", "x": "discard", "p": "pause"} | dict.fromkeys(keyboard.GO_ON, "go")
ENTRIES = {"action", "in_control", "success", "failure", "discard", "pause"}
HELP = "keys beside the device: y success, n failure, x give the episode up | p pause | space goes on"


class DeviceGone(OSError):
    """The device does not answer (unplugged, out of reach); it may come back."""


class PolledHuman(Human):
    """A `Human` whose device is looked at by a `read()` that never waits; the terminal's keys work beside it.

    While the device is gone, which an OSError or EOFError of `read()` says, nothing is commanded and the run waits for
    it; except in a recording a key lets the policy go on without it, until it is back.

    Args:
        keys: where keys come from (`keyboard.Terminal`), or None.
        Others as in `Human`.
    """

    def __init__(self, env: gym.Env, device: Any, *, keys: keyboard.Keys | None = None, **settings: Any):
        super().__init__(env, device, **settings)
        self.keys = keys
        self.gone, self.without, self.retry_at = False, False, 0.0  # without: a key said so

    def _command(self):
        command = self._look()
        while command is None and self._idle():
            rest(POLL_SECONDS)
            command = self._look()
        return command

    def _look(self) -> np.ndarray | None:
        """Do what was said since the last look; returns the action that is being made, or None."""
        raise NotImplementedError

    def _reading(self) -> tuple[Any, set[str]]:
        """What the device reads, None while it is gone and the human wants to go on, and what keys say, by name."""
        said = self._typed()
        while not (self.without and time.monotonic() < self.retry_at):
            try:
                reading = self.device.read()
            except (OSError, EOFError) as error:
                self._is_gone(error)
                said = (said | self._typed()) - {"pause"}  # it waits as it is
                self.without = self.without or ("go" in said and not self.leads)
                if not (self.without or said & ENDINGS):
                    rest(RETRY_SECONDS)
                    continue
                break
            if self.gone:
                self.say("the device is back")
            self.gone = self.without = False
            return reading, said
        return None, said

    def _is_gone(self, error):
        self.retry_at = time.monotonic() + RETRY_SECONDS
        if self.gone:
            return
        self.gone = True
        text = error if isinstance(error, DeviceGone) else f"the device is gone ({type(error).__name__}: {error})"
        key = "" if self.keys is None or self.leads else "; space goes on without it"
        self.say(f"{text}; nothing is commanded until it answers again{key}")

    def _typed(self):
        """What the keys pressed since the last call say, by name."""
        return {NAMES[key] for key in (self.keys.read().lower() if self.keys else "") if key in NAMES}


class DeviceHuman(PolledHuman):
    """A `PolledHuman` whose device has `read()` as at the top of this file."""

    yes_or_no, go_on = "y or n", "space (or the device's success button)"

    def _look(self):
        said, action, in_control = self._read()
        self._hear(said)
        if "pause" in said:
            self._pause()
            said, action, in_control = self._read()  # what he commands now, not what he did before the pause
            self._hear(said)
        holds = self.leads or (self.steer and in_control)
        if holds != self.in_control:
            self._take_over(holds)
        return action if self.in_control and action.any() else None

    def _hear(self, said):
        if said & {"success", "failure"}:
            self.verdict = "success" in said
        self.discard = self.discard or "discard" in said

    def _read(self):
        """What keys and buttons say, the device's action (A,), whether he steers."""
        reading, said = self._reading()
        shape = self.env.action_space.shape
        if reading is None:
            return said, np.zeros(shape, np.float32), False
        action = _checked(reading, shape)
        said |= {name for name in ENTRIES - {"action", "in_control"} if reading.get(name)}
        return said, action, bool(reading["in_control"])

    def _wait_for(self, wanted):
        while not (said := self._read()[0] & wanted):
            rest(POLL_SECONDS)
        return said

    def _ask(self):
        self._hear(self._wait_for({"success", "failure"}))

    def _wait_for_go(self):
        if self.keys is None:
            self.say("no terminal to say so in: it goes on")
        else:
            self._wait_for({"go", "success"})

    def _pause(self):
        self.say("paused; p or the button goes on")
        self._wait_for({"pause", "go"})
        self.say("goes on")

    def _forget(self):
        return "pause" in self._read()[0]


def rest(seconds: float) -> None:
    """Wait a moment of a wait that may last for ever: Ctrl-C ends it, amid a step too."""
    time.sleep(seconds)
    stop_if_told()


def _checked(reading: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The reading's action, float32. Raises ValueError for a reading of another form."""
    if not isinstance(reading, dict) or not {"action", "in_control"} <= reading.keys() <= ENTRIES:
        got = sorted(map(str, reading)) if isinstance(reading, dict) else type(reading).__name__
        raise ValueError(f"the device's read() returned {got}; wanted a dict of action, in_control and, optionally, "
                         f"{', '.join(sorted(ENTRIES - {'action', 'in_control'}))} (docs/devices.md)")  # fmt: skip
    action = np.asarray(reading["action"], np.float32)
    if action.shape != shape or not (np.abs(action) <= 1).all():
        raise ValueError(f"the device's action is {action}; wanted {shape} numbers in [-1, 1]")
    return action


def terminal_keys() -> keyboard.Terminal | None:
    """The keys of the terminal that the program was started in, if it was started in one."""
    return keyboard.Terminal() if sys.stdin.isatty() else None


def load_device(name: str) -> Callable[[gym.Env], Any]:
    """The function that `package:function` names. Raises ValueError where there is none."""
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # the package is the user's: anything can be wrong in it
        raise ValueError(f"--human {name} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(make):
        raise ValueError(f"--human {name} is no function; wanted one that takes the environment and returns a device")
    return make

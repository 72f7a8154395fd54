"""A human with a gamepad: holds a button to take over, steers with the sticks, says what succeeded, pauses.

Buttons have the names of SDL's game controller, which are an Xbox pad's; SDL knows where they are on other pads.
Needs pygame (requirements/gamepad.txt), no display.
"""

import os
from typing import Protocol

import numpy as np

from pytorch_serl.envs.human.device import POLL_SECONDS, DeviceGone, PolledHuman, rest

DEAD_ZONE = 0.15  # of a stick's way, around its middle
TAKE_OVER, OTHER_ARM, PAUSE, SUCCESS, FAILURE, DISCARD = "rightshoulder", "leftshoulder", "start", "y", "x", "back"
GO = "go"  # what a key says and no button
KEYS = {"success": SUCCESS, "failure": FAILURE, "discard": DISCARD, "pause": PAUSE, "go": GO}  # in place of buttons
GRIPPER = {"a": -1.0, "b": 1.0}  # close, open
STICKS = {"lefty": (0, -1), "leftx": (1, -1), "righty": (2, -1), "rightx": (5, -1)}  # stick: entry, direction
CROSS = {
    "dpad_right": (3, 1),
    "dpad_left": (3, -1),
    "dpad_up": (4, 1),
    "dpad_down": (4, -1),
}  # button: entry, direction
HELP = (
    "gamepad: hold the right shoulder to take over | left stick x and y, right stick z and yaw, cross roll and pitch "
    "| A close, B open | left shoulder other arm | Y success, X failure, back give the episode up | start pause"
)


class Pad(Protocol):
    """Where sticks and buttons are read."""

    def read(self) -> tuple[dict[str, float], set[str]]:
        """The sticks' ways in [-1, 1] by name (down and right are positive), and the buttons that are down now or were
        pressed since the last call, however shortly."""


class Gamepad:
    """The first gamepad that is plugged in. Raises ValueError without pygame or without a gamepad."""

    def __init__(self):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS", "1")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import pygame
            from pygame._sdl2 import controller
        except ImportError:
            raise ValueError(
                "--human gamepad needs pygame: python -m pip install -r requirements/gamepad.txt"
            ) from None
        pygame.display.init()  # SDL reads its devices through the event queue, which belongs to the display
        controller.init()
        controller.set_eventstate(True)
        self.pygame, self.controller, self.device = pygame, controller, None
        if not self._found():
            raise ValueError("--human gamepad: no gamepad is plugged in that SDL knows")
        buttons = (TAKE_OVER, OTHER_ARM, PAUSE, SUCCESS, FAILURE, DISCARD, *GRIPPER, *CROSS)
        self.axes = {name: getattr(pygame, f"CONTROLLER_AXIS_{name.upper()}") for name in STICKS}
        self.buttons = {name: getattr(pygame, f"CONTROLLER_BUTTON_{name.upper()}") for name in buttons}

    def _found(self):
        """Whether there is a gamepad: the one in use, or else the first that is plugged in now."""
        if self.device is None or not self.device.attached():
            numbers = range(self.controller.get_count())
            found = [number for number in numbers if self.controller.is_controller(number)]
            self.device = self.controller.Controller(found[0]) if found else None
        return self.device is not None

    def read(self) -> tuple[dict[str, float], set[str]]:
        """See `Pad`. Raises DeviceGone while no gamepad is plugged in."""
        events = self.pygame.event.get()  # all of them: in a full queue later ones would be lost
        try:
            there = self._found()
        except self.pygame.error:  # it went, or came, this moment
            there = False
        if not there:
            raise DeviceGone("the gamepad is gone")
        pressed = {event.button for event in events if event.type == self.pygame.CONTROLLERBUTTONDOWN}
        sticks = {name: self.device.get_axis(number) / 32767 for name, number in self.axes.items()}
        return sticks, {n for n, number in self.buttons.items() if number in pressed or self.device.get_button(number)}


class GamepadHuman(PolledHuman):
    """Somebody whose device is a `Gamepad`, or something else with `read`; in control while he holds a button."""

    yes_or_no, go_on = "Y or X", "start"
    held: set[str] = frozenset()  # buttons that were down at the last look
    typed_success = False  # what a key said last of a scene: it cannot be held, as the button is

    def _look(self):
        sticks, pressed = self._read()
        holds = self.leads or (self.steer and TAKE_OVER in self.held)
        if holds != self.in_control:
            self._take_over(holds)
        if OTHER_ARM in pressed and self.arms > 1:
            self._change_arm()
        self._judge(pressed)
        self.discard = self.discard or DISCARD in pressed
        if PAUSE in pressed:
            self._pause()
            return self._look()  # what he commands now, not what he did before the pause
        if not self.in_control:
            return None
        action = np.zeros((self.arms, self.block), np.float32)
        ways = [
            (*STICKS[name], max(0.0, abs(way) - DEAD_ZONE) / (1 - DEAD_ZONE) * np.sign(way))
            for name, way in sticks.items()
        ]
        ways += [(*CROSS[name], 1.0) for name in self.held & CROSS.keys()]
        for entry, direction, way in ways:
            if entry < self.block - self.grippers:
                action[self.arm, entry] += direction * way
        if self.grippers:
            action[self.arm, -1] = sum(GRIPPER[name] for name in pressed & GRIPPER.keys())
        return action.clip(-1, 1).ravel() if action.any() else None

    def _read(self):
        """The sticks, and the buttons that have gone down since the last look, or what keys say in their place."""
        reading, said = self._reading()
        sticks, down = reading or ({}, frozenset())
        pressed, self.held = down - self.held, down
        typed = {KEYS[name] for name in said}
        if (pressed | typed) & {SUCCESS, FAILURE}:
            self.typed_success = SUCCESS in typed
        return sticks, pressed | typed

    def _judge(self, pressed):
        if pressed & {SUCCESS, FAILURE}:
            self.verdict = SUCCESS in pressed

    def _ask(self):
        self._judge(self._wait_for({SUCCESS, FAILURE}))

    def _wait_for_go(self):
        self._wait_for({PAUSE, GO})

    def _label(self):
        return self.typed_success or SUCCESS in self.held

    def _wait_for(self, wanted):
        while True:
            pressed = self._read()[1]
            if pressed & wanted:
                return pressed
            rest(POLL_SECONDS)

    def _pause(self):
        self.say("paused; start goes on")
        self._wait_for({PAUSE, GO})
        self.say("goes on")

    def _forget(self):
        pressed, self.typed_success = self._read()[1], False
        return PAUSE in pressed

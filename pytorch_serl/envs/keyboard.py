"""A human at the terminal, over ssh, too: takes over the arm by keys, says what succeeded, pauses."""

import atexit
import os
import select
import sys
import termios
import tty
from collections.abc import Callable
from typing import Protocol

import gymnasium as gym
import numpy as np

SPEED = 0.5  # of the largest command, per key
MOVES = {"w": (0, 1), "s": (0, -1), "a": (1, 1), "d": (1, -1), "r": (2, 1), "f": (2, -1), "u": (3, 1), "j": (3, -1),
         "i": (4, 1), "k": (4, -1), "q": (5, 1), "e": (5, -1)}  # key: continuous entry, direction  # fmt: skip
GRIPPER = {"c": -1.0, "h": 0.0, "o": 1.0}
TAKE_OVER, OTHER_ARM, PAUSE, SUCCESS, FAILURE = "t", "\t", "p", "y", "n"
HELP = (
    "keys: t take over and hand back | w s a d r f move, u j i k q e turn | c close, o open, h hold | "
    "tab other arm | y success, n failure | p pause"
)


class Keys(Protocol):
    """Where keys come from."""

    def read(self, timeout: float | None = 0.0) -> str:
        """The keys pressed since the last call; waits up to `timeout` seconds (None: for ever) for a first one."""


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

    def read(self, timeout: float | None = 0.0) -> str:
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


class KeyboardHuman(gym.Wrapper):
    """Lets a human take over, judge and pause.

    y and n end the episode and overrule the environment's verdict. While the human has taken over, the environment
    steps once for every key that moves something, and waits in between, so that no action without intent is recorded.
    `info["intervene_action"]` is what was executed (float32), `info["human_verdict"]` 1 or 0 where the human judged.

    Args:
        env: with actions of one block per arm, in a learned-gripper mode its last entry the gripper's.
        keys: a `Terminal`, or something else with `read`.
        arms: 1 or 2.
        grippers: whether the blocks have a gripper entry.
        judge: "overrule": nothing else; "confirm": where the environment reports success, the human is asked, and
            only a y counts; "alone": the environment's reward and verdict are ignored.
        steer: whether taking over is possible; not in an evaluation.
        say: shows a line, who is in control for one.
    """

    def __init__(
        self, env: gym.Env, keys: Keys, *, arms: int, grippers: bool, judge: str = "overrule", steer: bool = True,
        say: Callable[[str], None] = print,
    ):  # fmt: skip
        super().__init__(env)
        self.keys, self.arms, self.grippers, self.judge, self.steer, self.say = keys, arms, grippers, judge, steer, say
        self.block = env.action_space.shape[0] // arms
        self.arm, self.in_control, self.verdict = 0, False, None

    def steered(self) -> "KeyboardHuman":
        """The same environment and keys, with taking over."""
        return KeyboardHuman(
            self.env, self.keys, arms=self.arms, grippers=self.grippers, judge=self.judge, say=self.say
        )

    def reset(self, **options):
        if self.in_control:
            self.say("in control: the policy")
        self.in_control, self.verdict = False, None
        self.keys.read()  # what was pressed before counts for nothing
        return self.env.reset(**options)

    def step(self, action):
        command = self._command()
        if command is not None:
            action = command
        obs, reward, terminated, truncated, info = self.env.step(action)
        if command is not None:
            info = info | {"intervene_action": command}
        if self.judge == "alone":
            terminated = terminated and not info.get("succeed")
            reward, info = 0.0, info | {"succeed": False}
        elif self.judge == "confirm" and info.get("succeed") and self.verdict is None:
            self.say("success? y or n")
            self._wait_for(SUCCESS + FAILURE)
        if self.verdict is not None:
            success, self.verdict = self.verdict, None
            terminated = success or (terminated and not info.get("succeed"))  # no success: as if time had run out
            reward, truncated = float(success), not terminated
            info = info | {"succeed": success, "human_verdict": float(success)}
        return obs, reward, terminated, truncated, info

    def _command(self):
        """The human's action for this step (A,), or None where the policy acts."""
        command = self._take(self.keys.read())
        while self.in_control and command is None and self.verdict is None:
            command = self._take(self.keys.read(timeout=None))
        return command if self.in_control else None

    def _take(self, keys):
        """Do what the keys say; returns the action that they make, or None where they move nothing."""
        action, moves = np.zeros((self.arms, self.block), np.float32), False
        for key in keys:
            if key == TAKE_OVER and self.steer:
                self.in_control = not self.in_control
                self.say(f"in control: {'you, ' + self._name() if self.in_control else 'the policy'}")
            elif key == OTHER_ARM and self.arms > 1:
                self.arm = 1 - self.arm
                self.say(f"your keys move the {self._name()}")
            elif key == PAUSE:
                self.say("paused; p goes on")
                self._wait_for(PAUSE)
                self.say("goes on")
            elif key in (SUCCESS, FAILURE):
                self.verdict = key == SUCCESS
            elif key in MOVES and MOVES[key][0] < self.block - self.grippers:
                entry, direction = MOVES[key]
                action[self.arm, entry] = SPEED * direction
                moves = True
            elif key in GRIPPER and self.grippers:
                action[self.arm, -1] = GRIPPER[key]
                moves = True
        return action.ravel() if moves else None

    def _wait_for(self, wanted):
        while True:
            for key in self.keys.read(timeout=None):
                if key in wanted:
                    if key in (SUCCESS, FAILURE):
                        self.verdict = key == SUCCESS
                    return

    def _name(self):
        return "arm" if self.arms == 1 else ("left arm", "right arm")[self.arm]

"""The control rate: waiting for the next tick, and how long an action took."""

import time
from collections import deque

import numpy as np

LATE = 0.1  # a step that comes later than this share of its period is an overrun
KEPT = 1000  # steps in the figures


class Pace:
    """Keeps the environment's steps `1 / control_hz` seconds apart and measures them.

    Args:
        control_hz: steps per second; None leaves the time to the environment, and only measures.
    """

    def __init__(self, control_hz: float | None = None):
        self.period = 1.0 / control_hz if control_hz else None
        self.delays, self.periods, self.late = (deque(maxlen=KEPT) for _ in range(3))  # s, s, 0 or 1
        self.restart()

    def restart(self) -> None:
        """An episode begins: the time before it counts for nothing."""
        self.tick = self.last = self.chosen = None
        self.noted: list[deque] = []  # what the last step's figures were added to
        self.measures = True
        self.seen = time.monotonic()

    def observed(self) -> None:
        """An observation came."""
        self.seen, self.chosen = time.monotonic(), None

    def acted(self) -> None:
        """The policy's action is there; until `keep` a human may take the time that he needs."""
        self.chosen = time.monotonic()

    def keep(self) -> None:
        """The command goes out now: note how long the action took, and wait until it is due."""
        now, self.noted = time.monotonic(), []
        self.delays.append((self.chosen or now) - self.seen)
        if self.period and self.tick is not None:
            self._note(self.late, now - self.tick > LATE * self.period)
            time.sleep(max(0.0, self.tick - now))
            now = max(now, self.tick)
        if self.last is not None:
            self._note(self.periods, now - self.last)
        self.last, self.measures = now, True
        if self.period:
            self.tick = now + self.period

    def disregard(self) -> None:
        """A human acted in this step: its time and the next one's are his, and do not count; the rate is kept."""
        for figures in self.noted:
            figures.pop()
        self.noted, self.measures = [], False

    def _note(self, figures: deque, value: float) -> None:
        if self.measures:
            figures.append(value)
            self.noted.append(figures)

    def figures(self) -> dict[str, float]:
        """Milliseconds from observation to action and between steps; overruns as a share of the steps."""
        figures = {}
        for name, seconds in (("action_ms", self.delays), ("step_ms", self.periods)):
            if seconds:
                for percent, value in zip((50, 95, 99), np.percentile(seconds, (50, 95, 99))):
                    figures[f"{name}_p{percent}"] = 1000 * value
        return figures | ({"overruns": float(np.mean(self.late))} if self.late else {})

"""3Dconnexion space mice, one per arm: moving one takes over, letting go for half a second hands back.

Needs pyspacemouse (requirements/spacemouse.txt) and the hidapi library. Axes are those of ROS: x forwards, y to the
left, z up, as of a robot that looks away from the human.
"""

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from pytorch_serl.envs.human.device import DeviceGone
from pytorch_serl.utils.signals import stop_if_told

AXES = ("x", "y", "z", "roll", "pitch", "yaw")
DEAD_ZONE, SCALE = 0.1, 1.0  # of the cap's way
LET_GO_SECONDS = 0.5
CLOSE, OPEN = 0, 1  # buttons, from the left
MOST_REPORTS = 100  # read at once: the device sends translation and rotation in turn, and queues them
FIRST_MOTION_SECONDS = 60.0
UDEV = 'SUBSYSTEM=="hidraw", ATTRS{idVendor}=="256f", MODE="0666"'
HELP = "space mouse: move it to take over, let go to hand back | left button close, right button open"
SILENT = (
    "no motion came from a space mouse: some models send only zeros over USB, and work over Bluetooth or their "
    "receiver; 3Dconnexion's own driver must not run beside it"
)


class SpaceMice:
    """One space mouse per arm as a device for `DeviceHuman`.

    At the start each has to be moved once, the left arm's first: so it is known which is which, and that they work.

    Args:
        shape: of the environment's action.
        arms, grippers: as in `Human`.
        dead_zone: share of the cap's way around its middle that counts as nothing.
        signs: 1 or -1 for each of x, y, z, roll, pitch, yaw.
        scale: factor on the cap's way; the action is clipped to [-1, 1].
        library: pyspacemouse, or what stands for it.
        say: shows a line.
    Raises ValueError, saying what to do, without the package, the device, or the right to read it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        arms: int,
        grippers: bool,
        dead_zone: float = DEAD_ZONE,
        signs: tuple[int, ...] = (1,) * 6,
        scale: float = SCALE,
        library: ModuleType | Any | None = None,
        say: Callable[[str], None] = print,
    ):
        self.shape, self.arms, self.grippers = shape, arms, grippers
        self.dead_zone, self.signs, self.scale = dead_zone, np.asarray(signs), scale
        self.library, self.say = library or _library(), say
        paths = self._paths()
        if len(paths) < arms:
            raise ValueError(f"--human spacemouse: {len(paths)} space mice are there, wanted {arms}, one per arm")
        self.mice = {path: self._open(path) for path in paths}
        self.order = self._ask_which_is_which()  # paths, left arm first
        self.held = {path: (0, 0) for path in paths}
        self.moved_at = -np.inf

    def read(self) -> dict[str, Any]:
        """See envs/human/device.py."""
        self._reopen()
        blocks = np.zeros((self.arms, self.shape[0] // self.arms), np.float32)
        for arm, path in enumerate(self.order):
            ways, pressed = self._state(path)
            entries = min(len(AXES), blocks.shape[1] - self.grippers)
            blocks[arm, :entries] = ways[:entries]
            if self.grippers:
                blocks[arm, -1] = pressed[OPEN] - pressed[CLOSE]
        if blocks.any():
            self.moved_at = time.monotonic()
        return {"action": blocks.ravel(), "in_control": time.monotonic() - self.moved_at < LET_GO_SECONDS}

    def close(self) -> None:
        for mouse in self.mice.values():
            mouse.close()

    def _state(self, path):
        """The cap's ways (6,) in [-1, 1] beyond the dead zone, and the buttons that have gone down since last time."""
        state = self._newest(path)
        ways = np.array([getattr(state, axis) for axis in AXES])
        beyond = np.sign(ways) * np.maximum(0.0, np.abs(ways) - self.dead_zone) / (1 - self.dead_zone)
        held = tuple(int(bool(b)) for b in (*state.buttons, 0, 0)[:2])
        pressed = [now and not before for now, before in zip(held, self.held.get(path, (0, 0)))]
        self.held[path] = held
        return (self.signs * self.scale * beyond).clip(-1, 1), pressed

    def _newest(self, path):
        """The newest of the reports that have come. Raises DeviceGone."""
        try:
            state = self.mice[path].read()
            for _ in range(MOST_REPORTS):
                before = state.t
                state = self.mice[path].read()
                if state.t == before:
                    break
            return state
        except Exception as error:  # the libraries below raise what they like when a device is pulled out
            if path in self.mice:
                try:
                    self.mice.pop(path).close()
                except Exception:  # it is gone
                    pass
            raise DeviceGone(f"the space mouse {path} is gone ({error})") from error

    def _reopen(self):
        """Open mice again that were pulled out; where one has another path now, ask which is which.

        Raises DeviceGone.
        """
        missing = [path for path in self.order if path not in self.mice]
        try:
            paths = self._paths() if missing else self.order
            if len(paths) < self.arms:
                raise DeviceGone(f"{len(paths)} of {self.arms} are there")
            known = set(self.order) <= set(paths)
            wanted = self.order if known else paths
            self.mice |= {path: self._open(path) for path in wanted if path not in self.mice}
            if not known:
                self.mice = {path: mouse for path, mouse in self.mice.items() if path in paths}
                self.order = self._ask_which_is_which()
        except Exception as error:  # as in `_newest`
            raise DeviceGone(f"the space mouse {missing[0]} is gone ({error})") from error

    def _paths(self):
        try:
            return sorted(self.library.get_connected_devices_by_path())
        except RuntimeError as error:
            raise ValueError(f"--human spacemouse needs hidapi (Debian: libhidapi-hidraw0): {error}") from None

    def _open(self, path):
        try:
            return self.library.open_by_path(path, axis_convention="ros")
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"--human spacemouse: {path} cannot be opened ({error}); on Linux put this line into "
                "/etc/udev/rules.d/99-spacemouse.rules, run `udevadm control --reload-rules`, and plug it in again: "
                + UDEV
            ) from None

    def _ask_which_is_which(self):
        """The paths in the order of the arms, by who is moved first. Raises ValueError where nothing moves."""
        order, self.held = [], {}
        for arm in range(self.arms):
            which = "" if self.arms == 1 else f" of the {('left', 'right')[arm]} arm"
            self.say(f"move the space mouse{which}")
            until = time.monotonic() + FIRST_MOTION_SECONDS
            while len(order) == arm:
                moved = [path for path in self.mice if path not in order and self._state(path)[0].any()]
                order += moved[:1]
                if time.monotonic() > until:
                    raise ValueError(SILENT)
                time.sleep(0.01)
                stop_if_told()
        return order


def _library():
    try:
        import pyspacemouse
    except ImportError:
        raise ValueError(
            "--human spacemouse needs pyspacemouse: python -m pip install -r requirements/spacemouse.txt"
        ) from None
    return pyspacemouse

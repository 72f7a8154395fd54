"""The one place where an environment is reset, stepped and closed: copies, the rate, what comes back, the end.

Training, evaluations, Ray's robots and train_offline.py all act through `Robot`, which sits directly around the user's
environment, below the classifier and the human: whoever sends a command, these promises hold.
"""

import time
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from pytorch_serl.data.oddities import start_oddity
from pytorch_serl.training.pace import Pace
from pytorch_serl.training.rewards import ContractError

STILL_FRAMES = 5  # so many identical or blank frames in a row, while the arm moves, are no accident
STILL_ROBOT = 10  # likewise where the state stays the same as well: a robot at its limit, or one that is gone
MOVES = 0.02  # an action with an entry beyond this moves the arm
BLANK_RANGE = 4  # levels: a frame whose channels span no more shows nothing
LONGEST_DEMOS, SHORTEST_LIMIT = 10, 50  # a limit where none is known: so many times the longest demo, at least so much
PROBE_SEED = 0


class Robot(gym.Wrapper):
    """An environment, and what the product promises to it and wants from it.

    It gets copies of actions, at least 1 / `control_hz` seconds apart within an episode, and is closed once. Its
    observations are copied, since it may reuse its arrays, and each camera's frame has to be what its space says.
    Frames that stay the same or show nothing while the arm moves raise an alarm, one line.

    control_hz: commands per second; None leaves the time to the environment.
    cameras: name -> space; all until `use` says which are used.
    limit: an episode is truncated after so many steps, by default the environment's own `time_limit`, which where it is
        an attribute alone ends nothing; None, where none is known, leaves its end to the environment.
    pace: of this episode; a reset begins a new one.
    step, reset: raise ContractError for what is not Gymnasium's interface or not the space's frames.
    """

    def __init__(self, env: gym.Env, control_hz: float | None = None, limit: int | None = None):
        super().__init__(env)
        self.control_hz, self.pace = control_hz, Pace(control_hz)
        self.limit = time_limit(env) if limit is None else limit
        spaces = getattr(env.observation_space, "spaces", {})
        self.cameras = {k: s for k, s in spaces.items() if len(s.shape or ()) == 3 and s.dtype == np.uint8}
        self.watch, self.steps, self.closed = CameraWatch(), 0, False
        self.verdict = False  # whether the environment said of its last step whether it succeeded
        self.took = 0.0  # seconds of the environment's last step, without what was waited for its rate

    def use(self, cameras: Iterable[str]) -> None:
        """Check and watch these cameras alone."""
        self.cameras = {key: space for key, space in self.cameras.items() if key in cameras}

    def reset(self, **options):
        result = self.env.reset(**options)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise ContractError(f"reset() returned {_show(result)}; wanted two values: observation, info (a dict)")
        self.pace, self.steps = Pace(self.control_hz), 0
        self.pace.observed()
        obs = self._checked(result[0], "at its reset")
        self.watch.reset(obs, self.cameras)
        return obs, dict(result[1])

    def step(self, action):
        self.pace.keep()
        before = time.monotonic()
        result = self.env.step(np.array(action))  # a copy: what is stored is what was commanded
        self.took = time.monotonic() - before
        if not (isinstance(result, tuple) and len(result) == 5 and isinstance(result[4], dict)):
            raise ContractError(
                f"step() returned {_show(result)}; wanted five values: observation, reward, terminated, truncated, "
                "info (a dict)"
            )
        obs, reward, terminated, truncated, info = result
        self.verdict = "succeed" in info
        self.pace.observed()
        obs, self.steps = self._checked(obs, f"step {self.steps} of the episode"), self.steps + 1
        self.watch.step(obs, self.cameras, info.get("intervene_action", action))
        if self.limit is not None and self.steps >= self.limit and not (np.size(terminated) == 1 and terminated):
            truncated = True
        return obs, reward, terminated, truncated, dict(info)

    def close(self):
        """Close the environment, once; an error of its own becomes a line: it must hide no other and stop no saving."""
        if self.closed:
            return
        self.closed = True
        try:
            self.env.close()
        except Exception as error:  # the package is the user's: anything can be wrong in it
            print(f"WARNING: the environment's close() failed: {type(error).__name__}: {error}", flush=True)

    def probe(self, verdict: bool) -> dict[str, Any]:
        """Reset once and hold still for one step, to find before any learning what the contract excludes.

        Holding still is the action of zeros; the episode is not used.

        Args:
            verdict: `info["succeed"]` is wanted.
        Returns: the observation after the reset.
        Raises ContractError with what to return instead.
        """
        try:
            obs, _ = self.reset(seed=PROBE_SEED)
            *_, info = self.step(np.zeros(self.action_space.shape, self.action_space.dtype))
        except ContractError:
            raise
        except Exception as error:
            hint = ""
            if isinstance(error, (TypeError, ValueError, AssertionError)):
                hint = (
                    "; wanted Gymnasium's interface: reset(*, seed=None, options=None) returns observation, info; "
                    "step(action) returns observation, reward, terminated, truncated, info"
                )
            raise ContractError(
                f"the environment failed in its first reset and step: {type(error).__name__}: {error}{hint}"
            ) from error
        if verdict and "succeed" not in info:
            raise ContractError(
                f"the environment's step() returned an info with {sorted(map(str, info))}; wanted 'succeed' (bool) in "
                "the info of every step, or give train_hybrid.py a classifier (--reward classifier --classifier_ckpt "
                "...)"
            )
        return obs

    def _checked(self, obs: Any, moment: str) -> Any:
        """The observation with its arrays copied. Raises ContractError, naming the moment and the camera."""
        if not isinstance(obs, dict):
            return obs
        obs = {key: self._copied(key, value, moment) for key, value in obs.items()}
        for key, space in self.cameras.items():
            frame = obs.get(key)
            if frame is None or frame.shape != space.shape or frame.dtype != space.dtype:
                got = f"no frame (the observation has {sorted(map(str, obs))})" if frame is None else _show(frame)
                raise ContractError(
                    f"the environment, {moment}: camera {key!r} gave {got}; its space says {space.dtype} "
                    f"{space.shape}: the camera's settings have changed, or the environment must crop, resize or "
                    "convert as it does otherwise"
                )
        return obs

    def _copied(self, key: str, value: Any, moment: str) -> np.ndarray:
        try:
            return np.array(value)
        except (ValueError, TypeError) as error:  # lists of several lengths, a tensor of a GPU
            raise ContractError(
                f"the environment, {moment}: observation[{key!r}]: got {_show(value)}, wanted one numpy array ({error})"
            ) from None


class CameraWatch:
    """Counts each camera's frames that stay the same or show nothing while the arm moves, and says so.

    The state, where there is one, tells an arm that moves from one that is commanded and stands; then it takes longer.
    """

    def __init__(self):
        self.last: dict[str, np.ndarray] = {}
        self.still: dict[str, int] = {}  # frames in a row; over episodes, too
        self.missed: dict[str, int] = {}  # of these, frames in which the state has changed
        self.blank: dict[str, int] = {}
        self.raised: set[str] = set()

    def reset(self, obs: Any, cameras: Iterable[str]) -> None:
        self._look(obs, cameras, moves=False)

    def step(self, obs: Any, cameras: Iterable[str], action: Any) -> None:
        try:
            moves = bool((np.abs(np.asarray(action, float)) > MOVES).any())
        except (ValueError, TypeError):  # a correction that is none: who records it says what is wrong
            moves = False
        self._look(obs, cameras, moves)

    def _look(self, obs, cameras, moves):
        if not isinstance(obs, dict):
            return
        stands = "state" in obs and "state" in self.last and np.array_equal(obs["state"], self.last["state"])
        for key in cameras:
            frame, last = obs[key], self.last.get(key)
            blank, same = is_blank(frame), last is not None and np.array_equal(frame, last)
            self.blank[key] = self.blank.get(key, 0) + moves if blank else 0
            self.still[key] = self.still.get(key, 0) + moves if same else 0
            self.missed[key] = self.missed.get(key, 0) + (moves and not stands) if same else 0
            self._say(key, stands)
        self.last = obs

    def _say(self, key, stands):
        blank, still = self.blank[key], self.still[key]
        if blank >= STILL_FRAMES:
            text = f"the last {blank} frames show nothing, one colour"
        elif still >= STILL_ROBOT or self.missed[key] >= STILL_FRAMES:
            text = f"the last {still} frames are identical" + (", and so is the state" if stands else "")
        else:
            if not blank and not still:
                self.raised.discard(key)
            return
        if key not in self.raised:
            self.raised.add(key)
            tqdm.write(
                f"ALARM: camera {key!r}: {text}, while the arm is commanded to move: has the camera stopped, or does "
                "the robot not move? Unless an arm stands at its limit: stop (Ctrl-C saves), mend it, --resume"
            )


def is_blank(frame: np.ndarray) -> bool:
    """Whether every channel of an image (H, W, C) is one level, up to noise."""
    for part in (frame[::8, ::8], frame):  # the few pixels settle it for nearly every picture
        low, high = part.min(axis=(0, 1)), part.max(axis=(0, 1))
        if (high.astype(int) - low > BLANK_RANGE).any():
            return False
    return True


def robots_in(env: Any) -> list[Robot]:
    """The `Robot` in an environment's wrappers, if it has one; of a list of environments, all of theirs."""
    if isinstance(env, list):
        return [robot for each in env for robot in robots_in(each)]
    while isinstance(env, gym.Wrapper) and not isinstance(env, Robot):
        env = env.env
    return [env] if isinstance(env, Robot) else []


def guarded(env: gym.Env) -> gym.Env:
    """The environment, around it a `Robot` where it has none."""
    return env if robots_in(env) else Robot(env)


def close_robots(env: Any) -> None:
    """Close an environment, or those of a list, each once however often it is called."""
    for robot in robots_in(env):
        robot.close()


def breaches(env: gym.Env, cameras: Iterable[str]) -> list[str]:
    """What cameras' frames and actions' limits break of the contract (docs/robot.md), by the environment's spaces."""
    spaces, space = getattr(env.observation_space, "spaces", {}), env.action_space
    wrong = [
        f"camera {key!r} gives {spaces[key].dtype} {spaces[key].shape}, wanted uint8 (H, W, 3) in 0..255"
        for key in cameras
        if key in spaces and (spaces[key].dtype != np.uint8 or spaces[key].shape[-1:] != (3,))
    ]
    if not isinstance(space, gym.spaces.Box):
        wrong.append(f"actions are {space}, wanted a gymnasium.spaces.Box of numbers (A,) from -1 to 1")
    elif not (np.allclose(space.low, -1) and np.allclose(space.high, 1)):
        wrong.append(f"actions lie in {space}, wanted -1 to 1 (gymnasium.wrappers.RescaleAction does that)")
    return wrong


def time_limit(env: gym.Env) -> int | None:
    """The steps after which an episode is truncated, where that is known: registered, wrapped, or an attribute."""
    limits = [getattr(env.spec, "max_episode_steps", None), getattr(env.unwrapped, "max_episode_steps", None)]
    while isinstance(env, gym.Wrapper):
        limits.append(getattr(env, "_max_episode_steps", None))
        env = env.env
    return next((int(limit) for limit in limits if limit), None)


def prepare(
    env: Any,
    name: str,
    longest_demo: int,
    control_hz: float | None,
    verdict: bool,
    max_steps: int | None = None,
    starts: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Make an environment that was made for a run ready: its rate, its time limit, and a first reset and step.

    Where no time limit is known an episode is truncated after ten times the longest demo, and after `max_steps` steps,
    and a line says so.

    Args:
        verdict: `info["succeed"]` is wanted.
        starts: where episodes begin in the demos (`start_bounds`); a first state outside is a warning.
    Raises ContractError, naming the environment, as `Robot.probe` does.
    """
    for robot in robots_in(env):
        robot.control_hz = control_hz
        if robot.limit is None:
            limit = max(LONGEST_DEMOS * longest_demo, SHORTEST_LIMIT)
            robot.limit = min(limit, max_steps) if max_steps else limit
            print(
                f"WARNING: no time limit is registered for --env {name}: an episode that does not end before is ended "
                f"after {robot.limit:,} steps, in training and evaluation, as by a time limit; register the "
                "environment with max_episode_steps=... to choose another",
                flush=True,
            )
        try:
            obs = robot.probe(verdict)
        except ContractError as error:
            raise ContractError(f"--env {name}: {error}") from error.__cause__
        text = start_oddity(starts, np.asarray(obs["state"])) if starts is not None and "state" in obs else None
        if text:
            print(f"WARNING: --env {name}: {text}", flush=True)


def _show(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values ({', '.join(type(each).__name__ for each in value)})"
    return f"one value ({type(value).__name__})"

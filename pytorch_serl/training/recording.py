"""Recording: episodes on disk as they happen, the demo and classifier files made of them, and pictures."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from pytorch_serl.data.actions import gripper_columns, num_arms, num_grippers
from pytorch_serl.data.checks import DataError, Place
from pytorch_serl.data.episode_files import EpisodeWriter, episode_files, packed, read_episode
from pytorch_serl.data.oddities import unread_vectors
from pytorch_serl.networks.resnet import check_image_keys, resized
from pytorch_serl.training.limits import Limits, Moment
from pytorch_serl.training.pace import LATE
from pytorch_serl.training.robot import Robot, breaches
from pytorch_serl.utils.files import atomic_write, write_pickle

DEMOS, FAILED, CLASSES = "demos.pkl", "failed_demos.pkl", ("failure", "success")  # of CLASSES, index = label
CAMERAS_PICTURE, DEMOS_PICTURE = "cameras.png", "demos.png"
FRAMES = re.compile(r"(demo|episode|labelled)_[0-9]+\.pkl")  # of the classifier, one file a scene and class
RECORD_SEED = 500_000_000  # recordings are seeded from here, training far below, evaluations far above
SUCCESS_FRAMES = 8  # classifier frames at and after success, per episode
FAILURE_FRAMES = 8  # classifier frames of an episode's way to success, and as many of a failed one
HARD_FRAMES = 3  # the last ones before success are always among them
MOST_OF_PERIOD = 0.5  # what writing a step may take of the time between two
CHECK_STEPS = 10  # the arm is told to stand still so often, to see what rate it keeps
STORED = ("observations", "actions", "next_observations", "rewards", "dones", "masks", "grasp_penalty")

Act = Callable[[], np.ndarray]


# ---------------------------------------------------------------- episodes


def recording_limits(env: gym.Env, cameras: list[str], setup_mode: str) -> Limits:
    """The limits of a demo file for this environment, whose spaces `check_spaces` has seen."""
    spaces, size = env.observation_space.spaces, env.action_space.shape[0]
    state_dim = spaces["state"].shape[0] if "state" in spaces else 0
    columns = tuple(gripper_columns(size, setup_mode))
    return Limits({key: spaces[key].shape for key in cameras}, state_dim, size, columns)


def record_episode(
    env: gym.Env, act: Act, limits: Limits, writer: EpisodeWriter, number: int, seed: int
) -> tuple[str, int]:
    """Record one episode, seeded `seed`, every step on disk as it comes.

    Args:
        env: with the human beside it, if one steers; `info["intervene_action"]` is what he executed, and
            `info["discard"]` that the episode is to be thrown away.
        act: the action of who steers; where a human does, one that stands still.
    Returns: "success", "failure" or "discarded"; of the last, no file is left; and in how many steps a human acted. An
    episode in which nothing was moved is discarded, too: no reader takes demos with one.
    Raises ContractError for what the contract with the environment excludes; that step is not recorded.
    """
    obs, _ = env.reset(seed=seed)
    limits.observation(Moment(f"recorded episode {number}"), "observation", obs)
    writer.start(number, obs)
    over, steps, steered, moved = False, 0, 0, False
    while not over:
        action = act()
        result = env.step(action)
        step, _ = limits.step(Moment(f"recorded episode {number}", steps), action, result)
        obs, *_, info = result
        step["dones"] = over = step["dones"] or bool(info.get("discard"))
        success = bool(info.get("succeed"))  # absent where nobody but a human judges, and he said nothing
        writer.add(step | ({"succeed": float(success)} if over else {}), obs)
        steps, steered = steps + 1, steered + ("intervene_action" in info)
        moved = moved or _moves(step)
    if not (moved or info.get("discard")):
        tqdm.write("nothing was moved in this episode: thrown away")
    if info.get("discard") or not moved:
        writer.path.unlink()
        return "discarded", steered
    return "success" if success else "failure", steered


def _moves(step: dict[str, Any]) -> bool:
    """Whether a step's action commands anything."""
    return bool(np.any(step["actions"]))


def recorded_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """What recordings have left in a folder: demos and their episodes, and the classifier's frames."""
    demos = [folder / name for name in (DEMOS, FAILED, DEMOS_PICTURE)] + list(episode_files(folder).values())
    frames = [path for name in CLASSES for path in (folder / name).glob("*.pkl") if FRAMES.fullmatch(path.name)]
    return [path for path in demos if path.is_file()], frames


def finished_episodes(folder: Path, limits: Limits) -> dict[int, bool]:
    """Number -> success of the recorded episodes; removes what was left of a killed one, and one that nobody may read
    since nothing was moved in it.

    Raises ValueError, and removes nothing, for episodes of another environment.
    """
    found, unfinished = {}, []
    for number, path in episode_files(folder).items():
        transitions = read_episode(path)
        success = transitions[-1].get("succeed") if transitions else None  # only the step that ended it has a verdict
        if success is None or not any(map(_moves, transitions)):
            unfinished.append(path)
            continue
        try:
            limits.recorded_step(Place(str(path), 0), transitions[0])
        except DataError as error:
            raise ValueError(f"--resume wants the environment, cameras and setup mode of before: {error}") from None
        found[number] = bool(success)
    for path in unfinished:
        path.unlink()
    return found


def write_demos(folder: Path, episodes: dict[int, bool], keep_failures: bool) -> None:
    """Write demos.pkl, the successful episodes as one list, and with `keep_failures` failed_demos.pkl."""
    for name, wanted in ((DEMOS, True), (FAILED, False)):
        numbers = [number for number, success in episodes.items() if success == wanted]
        if name == DEMOS or (keep_failures and numbers):
            write_pickle(folder / name, [t for number in numbers for t in stored_transitions(folder, number)])
        elif keep_failures:  # what is there was made of episodes that are gone
            (folder / name).unlink(missing_ok=True)


def stored_transitions(folder: Path, number: int) -> list[dict]:
    """The transitions of a recorded episode as a demo file holds them, with the scene's number."""
    transitions = read_episode(episode_files(folder)[number])
    return [{key: t[key] for key in STORED} | {"scene": number} for t in transitions]


# ---------------------------------------------------------------- frames for the classifier


def write_frames(folder: Path, name: str, scene: int, success: list[dict], failure: list[dict]) -> tuple[int, int]:
    """Write one scene's labelled observations to success/`name` and failure/`name`; returns how many there are."""
    for label, observations in ((1, success), (0, failure)):
        if observations:
            frames = [{"observations": obs, "labels": label, "scene": scene} for obs in observations]
            write_pickle(folder / CLASSES[label] / name, frames)
    return len(success), len(failure)


def frames_of_demo(transitions: list[dict], rng: np.random.Generator) -> tuple[list[dict], list[dict]]:
    """What a successful episode has for a classifier: (its success, its way there with the last, hardest frames)."""
    way = [t["observations"] for t in transitions]
    few = some(way[:-HARD_FRAMES], rng, FAILURE_FRAMES - HARD_FRAMES) + way[-HARD_FRAMES:]
    return [transitions[-1]["next_observations"]], few


def more_success(
    env: gym.Env, keys: list[str], setup_mode: str, last_action: np.ndarray, rng: np.random.Generator
) -> list[dict]:
    """Frames after a success that goes on while a simulated arm moves a little, more or less as in its last action."""
    task, frames = env.unwrapped, []  # the wrappers have ended the episode
    for _ in range(3 * SUCCESS_FRAMES):
        action = (
            (0.5 * last_action + rng.normal(0, 0.2, last_action.shape)).reshape(num_arms(setup_mode), -1).clip(-1, 1)
        )
        if num_grippers(setup_mode):
            action[:, -1] = 0.0
        obs, _, _, _, info = task.step(action.astype(np.float32).ravel())
        if info["succeed"]:
            obs = observed(env, obs)
            frames.append({key: np.array(obs[key]) for key in keys if key in obs})  # the task may reuse its arrays
        if len(frames) == SUCCESS_FRAMES - 1:
            break
    return frames


def observed(env: gym.Env, obs: dict[str, Any]) -> dict[str, Any]:
    """The task's own observation as the ObservationWrappers around it show it; what others make of it is not known."""
    if env is env.unwrapped:
        return obs
    obs = observed(env.env, obs)
    return env.observation(obs) if isinstance(env, gym.ObservationWrapper) else obs


def failed_frames(env: gym.Env, keys: list[str], setup_mode: str, rng: np.random.Generator, seed: int) -> list[dict]:
    """Frames of a simulated episode that fails: a near miss where the environment knows one (`near_miss`), in turn
    with a useless policy, random, but drifting, so that it gets about."""
    obs, _ = env.reset(seed=seed)
    frames, over = [obs], False
    near = getattr(env.unwrapped, "near_miss", None) if seed % 2 == 0 else None
    for action in near(rng) if near else _drifting(env.action_space.shape, setup_mode, rng):
        obs, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        if over or info.get("succeed"):
            break
        frames.append(obs)
    chosen = frames[-FAILURE_FRAMES:] if near else some(frames, rng, FAILURE_FRAMES)
    return [{key: frame[key] for key in keys if key in frame} for frame in chosen]


def _drifting(shape: tuple[int, ...], setup_mode: str, rng: np.random.Generator) -> Iterator[np.ndarray]:
    drift = rng.uniform(-1, 1, shape)
    while True:
        drift = np.clip(0.9 * drift + 0.4 * rng.standard_normal(shape), -1, 1)
        action = drift.astype(np.float32)
        if num_grippers(setup_mode):
            blocks = action.reshape(num_arms(setup_mode), -1)
            blocks[:, -1] = blocks[:, -1].round()
        yield action


def some(items: list, rng: np.random.Generator, count: int) -> list:
    """At most `count` of the items, drawn without repetition, in order."""
    chosen = np.sort(rng.choice(len(items), min(count, len(items)), replace=False)) if items else ()
    return [items[i] for i in chosen]


# ---------------------------------------------------------------- looking before and after


def check_spaces(env: gym.Env, image_keys: list[str] | None, setup_mode: str) -> list[str]:
    """The cameras to record: `image_keys`, or all. Raises ValueError where the contract with environments is broken."""
    own = getattr(env.unwrapped, "setup_mode", setup_mode)
    if own != setup_mode:
        raise ValueError(f"the environment is {own}, --setup_mode {setup_mode}; give --setup_mode {own}")
    spaces = getattr(env.observation_space, "spaces", None)
    if spaces is None:
        raise ValueError(
            f"observations are {env.observation_space}; wanted a gymnasium.spaces.Dict of cameras and state"
        )
    cameras = [key for key, space in spaces.items() if len(space.shape or ()) == 3]
    if unknown := sorted(set(image_keys or []) - set(cameras)):
        raise ValueError(f"no camera {unknown} in the environment; it has {cameras}")
    check_image_keys(image_keys or cameras)
    if warning := unread_vectors(spaces):
        print(f"WARNING: {warning}")
    if not cameras:
        raise ValueError(f"no camera among the observations {sorted(spaces)}; wanted uint8 (H, W, 3)")
    wrong = breaches(env, image_keys or cameras)
    if "state" in spaces and (len(spaces["state"].shape) != 1 or spaces["state"].dtype.kind != "f"):
        wrong.append(f"'state' is {spaces['state'].dtype} {spaces['state'].shape}, wanted floats (D,)")
    space, arms, grippers = env.action_space, num_arms(setup_mode), num_grippers(setup_mode)
    is_box = isinstance(space, gym.spaces.Box)  # or else `breaches` says so
    if is_box and (len(space.shape) != 1 or space.shape[0] % arms):
        wrong.append(f"actions are {space}, wanted a Box of {arms} equal block{'s' * (arms > 1)}, one per arm")
    elif is_box and space.shape[0] // arms <= bool(grippers):
        wrong.append(f"actions have {space.shape[0]} entries, too few for {setup_mode}")
    if wrong:
        raise ValueError("the environment does not keep the contract (docs/robot.md): " + "; ".join(wrong))
    return list(image_keys or cameras)


def check_rate(env: Robot, seed: int, control_hz: float | None) -> tuple[dict[str, Any], str]:
    """Reset, then command a standstill CHECK_STEPS times.

    Returns: the observation after the reset, and a line on the time that reset and steps take.
    """
    started = time.monotonic()
    obs, _ = env.reset(seed=seed)
    reset_seconds, took = time.monotonic() - started, []
    for _ in range(CHECK_STEPS):
        _, _, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape, np.float32))
        took.append(env.took)
        if terminated or truncated:
            break
    median, worst = 1000 * np.median(took), 1000 * max(took)
    line = f"reset takes {reset_seconds:.2f} s; a step takes {median:.0f} ms, the slowest of {len(took)} {worst:.0f} ms"
    # an environment that keeps this very rate itself takes its period, now a little less and now a little more
    late = sum(seconds * control_hz > 1 + LATE for seconds in took) if control_hz else 0
    if late:
        line += (
            f"\nWARNING: {late} of {len(took)} steps took more than a tenth longer than the period of --control_hz "
            f"{control_hz:g}, {1000 / control_hz:.0f} ms"
        )
    elif not control_hz and median < 5:
        line += "; it does not wait for its robot: on hardware give --control_hz, else nothing keeps a rate"
    return obs, line


def storing_warning(obs: dict[str, Any], keys: list[str], control_hz: float | None) -> str | None:
    """What to say where writing a step's frames, which happens between two steps, leaves a rate too little time."""
    started = time.monotonic()
    packed({key: np.asarray(obs[key]) for key in keys if key in obs})
    took = time.monotonic() - started
    if not control_hz or took * control_hz < MOST_OF_PERIOD:
        return None
    return (
        f"WARNING: writing a step's frames takes {1000 * took:.0f} ms of the {1000 / control_hz:.0f} ms of "
        f"--control_hz {control_hz:g}: the rate may not be kept; have the environment give smaller ones (the network "
        "sees 128 x 128)"
    )


def seen_by_network(image: np.ndarray) -> np.ndarray:
    """A frame uint8 (H, W, 3) as the network sees it, uint8 (128, 128, 3)."""
    small = resized(torch.from_numpy(np.ascontiguousarray(image))[None])
    return small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def cameras_picture(path: Path, obs: dict[str, Any], image_keys: list[str]) -> None:
    """Write each camera's frame as it is, and beside it as the network sees it, enlarged to the same height."""
    rows = [(key, [obs[key], seen_by_network(obs[key])]) for key in image_keys]
    _save_sheet(
        path, [(f"{key}: {obs[key].shape[1]} x {obs[key].shape[0]}, seen as 128 x 128", row) for key, row in rows]
    )


def demos_picture(path: Path, folder: Path, numbers: Iterable[int], image_keys: list[str]) -> None:
    """Write first, middle and last frame of every episode, every camera; one row an episode."""
    rows = []
    for number in numbers:
        transitions = stored_transitions(folder, number)
        shown = transitions[0]["observations"], transitions[len(transitions) // 2]["observations"]
        frames = [obs[key] for key in image_keys for obs in (*shown, transitions[-1]["next_observations"])]
        rows.append((f"episode {number}, {len(transitions)} steps", frames))
    _save_sheet(path, rows, height=96)


def _save_sheet(path: Path, rows: list[tuple[str, list[np.ndarray]]], height: int = 256) -> None:
    """Rows of frames, all of them `height` pixels high, with a line of text above each."""
    from PIL import Image, ImageDraw

    margin, text = 4, 14
    resized = [
        (title, [Image.fromarray(f).resize((max(1, round(f.shape[1] * height / f.shape[0])), height)) for f in frames])
        for title, frames in rows
    ]
    width = max(sum(f.width + margin for f in frames) for _, frames in resized)
    sheet = Image.new("RGB", (width, len(rows) * (height + text + margin)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (title, frames) in enumerate(resized):
        left, top = 0, index * (height + text + margin)
        draw.text((0, top), title, fill="black")
        for frame in frames:
            sheet.paste(frame, (left, top + text))
            left += frame.width + margin
    with atomic_write(path) as file:
        sheet.save(file, "PNG")

"""Read and check demos: pickles of transitions, in this project's format or HIL-SERL's, and LeRobot datasets."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from pytorch_serl.data import demo_report, oddities
from pytorch_serl.data.actions import (
    SETUP_MODES,
    check_action_dim,
    check_not_zero,
    num_arms,
    num_grippers,
    snap_grippers,
)
from pytorch_serl.data.checks import (
    DataError,
    Place,
    load_transitions,
    read_action,
    read_flag,
    read_number,
    read_observation,
    read_penalty,
    take,
)
from pytorch_serl.data.episode_files import is_episode_file
from pytorch_serl.data.lerobot.reader import is_lerobot, load_lerobot
from pytorch_serl.data.oddities import rewards_of
from pytorch_serl.data.rewards import SAME, describe, kind_of_rewards

__all__ = ["SETUP_MODES", "DataError", "Demos", "num_arms", "num_grippers", "read_demos", "split_episodes"]
Paths = str | os.PathLike | Iterable[str | os.PathLike]
MIN_TO_HOLD_OUT = 5  # episodes; of fewer, each is worth more to training than to validation


@dataclass
class Demos:
    """Demo transitions, checked and brought to one form.

    transitions: dicts with observations and next_observations {image key: uint8 (H, W, 3), 'state': float32
        (D,)}, actions float32 (A,), rewards float, dones bool, masks float, grasp_penalty float. An array of
        next_observations is the very object in the following observations where the two are equal.
    episode_ids: (N,) int64, counted over all files. An episode ends with dones or with its file.
    state_dim: 0 where no state was recorded. action_dim: A, grippers included.
    warnings: what is odd but usable, with numbers. path: of the first file, absolute; "" where there is none.
    """

    transitions: list[dict]
    episode_ids: np.ndarray
    image_keys: list[str]
    image_shapes: dict[str, tuple[int, int, int]]
    state_dim: int
    action_dim: int
    setup_mode: str
    warnings: list[str] = field(default_factory=list)
    path: str = ""

    @property
    def continuous_dim(self) -> int:
        """Entries of an action that are no gripper command."""
        return self.action_dim - num_grippers(self.setup_mode)

    @property
    def memory_bytes(self) -> int:
        """Bytes of all arrays, each counted once."""
        return demo_report.memory_bytes(self.transitions)

    def summary(self) -> str:
        """Return several lines: counts, shapes, actions per dimension, gripper, memory, warnings."""
        return demo_report.summary(self)


def read_demos(paths: Paths, image_keys: str | Iterable[str], setup_mode: str) -> Demos:
    """Read one or several demo files, LeRobot datasets (folders, see `load_lerobot`), or a run's episodes/*.pkl.gz.

    paths: a path or a list of them. image_keys: the cameras to keep; other cameras in the files are dropped.
    setup_mode: one of SETUP_MODES.
    Raises DataError (a ValueError of one line: file, transition, key, what to do), UnsafePickleError where a
    file names code, ValueError where it is no whole pickle or an argument is wrong.
    """
    num_arms(setup_mode)  # refuses an unknown mode
    paths = [str(path) for path in _as_list("demo_paths", paths, (str, os.PathLike))]
    _as_list("demo_paths", [os.path.realpath(path) for path in paths], str)  # no file twice under two names
    image_keys = _as_list("image_keys", image_keys, str)
    if "state" in image_keys:
        raise ValueError("image_keys: got 'state', wanted cameras only; state is read where the file has it")
    demos, solved, empty = None, 0, []
    for path in paths:
        part = _read_file(path, image_keys, setup_mode)
        if part is None:
            empty.append(path)
            continue
        solved += oddities.successes(part)
        if demos is None:
            demos, first = replace(part, path=os.path.abspath(path)), path
            continue
        _check_same_layout(first, demos, path, part)
        part.warnings += _other_rewards(first, demos, path, part)
        demos.transitions += part.transitions
        demos.episode_ids = np.concatenate([demos.episode_ids, part.episode_ids + demos.episode_ids[-1] + 1])
        demos.warnings += part.warnings
    if demos is None:
        raise Place(paths[0]).error("file", "no whole step", "at least one transition", "record it again")
    if empty:
        demos.warnings.append(f"{', '.join(empty[:3])}: {len(empty)} files have no whole step and are left out")
    if not solved:  # in all files: one may hold failures alone
        demos.warnings.append(_all_failed([path for path in paths if path not in empty], demos))
    return demos


def split_episodes(demos: Demos, fraction: float, seed: int) -> tuple[Demos, Demos | None]:
    """Hold out whole episodes, drawn by `seed`: `fraction` of them, at least one.

    Returns: the rest and those held out; all and None where `fraction` is 0 or there are fewer than MIN_TO_HOLD_OUT.
    """
    episodes = np.unique(demos.episode_ids)
    if fraction == 0 or len(episodes) < MIN_TO_HOLD_OUT:
        return demos, None
    count = min(max(1, round(fraction * len(episodes))), len(episodes) - 1)
    chosen = np.isin(demos.episode_ids, np.random.default_rng(seed).choice(episodes, count, replace=False))
    return _select(demos, ~chosen), _select(demos, chosen)


def _select(demos, rows):
    transitions = [demos.transitions[row] for row in np.flatnonzero(rows)]
    return replace(demos, transitions=transitions, episode_ids=demos.episode_ids[rows])


def _as_list(name, values, kinds):
    values = [values] if isinstance(values, kinds) else list(values)
    if not values or len(set(values)) != len(values):
        raise ValueError(f"{name}: got {values}, wanted at least one value and none twice")
    return values


def load_recording(path: str, image_keys: list[str], setup_mode: str) -> tuple[list[dict], list[str]]:
    """The unchecked transitions of a pickle or a LeRobot dataset, and remarks on what was assumed in reading them."""
    if is_lerobot(path):
        return load_lerobot(path, image_keys, setup_mode)
    return load_transitions(path), []


def _read_file(path, image_keys, setup_mode):
    """Its demos; None where there is not one step."""
    raw, remarks = load_recording(path, image_keys, setup_mode)
    if not raw:  # a run was stopped between a reset and the first step
        return None
    one_episode = is_single(path)
    has_state, has_masks = any(map(_has_state, raw)), "masks" in raw[0]
    transitions, first = [], raw[0]
    for index, item in enumerate(raw):
        place = Place(path, index)
        transitions.append(read_transition(place, item, image_keys, has_state, has_masks))
        _check_shapes(place, transitions[-1], transitions[0])
        raw[index] = None  # frees what the transition does not keep
    has_penalty = _fill_penalties(transitions)
    mismatched = share_frames(transitions)
    episode_ids = _episode_ids(transitions)
    actions = np.stack([transition["actions"] for transition in transitions])  # (N, A)
    check_action_dim(Place(path, 0), actions.shape[1], setup_mode)
    check_not_zero(path, actions, episode_ids)
    actions, snapped = snap_grippers(path, actions, setup_mode, one_episode)
    for transition, action in zip(transitions, actions, strict=True):
        transition["actions"] = action
    first_obs = transitions[0]["observations"]
    demos = Demos(
        transitions,
        episode_ids,
        image_keys,
        {key: first_obs[key].shape for key in image_keys},
        len(first_obs.get("state", ())),
        actions.shape[1],
        setup_mode,
    )
    if unread := oddities.unread_vectors(first["observations"]):
        remarks = [*remarks, f"{path}: {unread}"]
    demos.warnings = remarks + oddities.find_oddities(path, demos, has_masks, has_penalty, snapped, mismatched)
    return demos


def _has_state(transition):
    observation = transition.get("observations") if isinstance(transition, dict) else None
    return isinstance(observation, dict) and "state" in observation


def read_transition(place, item, image_keys, has_state, has_masks):
    """Return the transition in this project's form; grasp_penalty is None where nothing was recorded.

    Raises DataError, naming `place` and the key, for what a transition must not hold.
    """
    result = {
        key: read_observation(place, key, item, image_keys, has_state) for key in ("observations", "next_observations")
    }
    result["actions"] = read_action(place, take(place, item, "actions"))
    result["rewards"] = read_number(place, "rewards", take(place, item, "rewards"))
    result["dones"] = read_flag(place, "dones", take(place, item, "dones"))
    result["masks"] = _read_mask(place, item, result["dones"], has_masks)
    result["grasp_penalty"] = read_penalty(place, item)
    return result


def _read_mask(place, item, done, has_masks):
    if not has_masks and "masks" not in item:
        return 1.0 - done
    if not has_masks:
        raise place.error("masks", "a mask", "none, as in transition 0", "store masks throughout or nowhere")
    mask = read_flag(place, "masks", take(place, item, "masks"), "store 1 - terminated")
    if not mask and not done:
        raise place.error(
            "masks",
            "mask 0 where dones is False",
            "1 until the episode is done",
            "store 1 - terminated (mask 1 with dones True is a time limit)",
        )
    return float(mask)


def _fill_penalties(transitions):
    """Set absent grasp penalties to 0, in place; return whether any was recorded."""
    recorded = False
    for transition in transitions:
        recorded = recorded or transition["grasp_penalty"] is not None
        transition["grasp_penalty"] = transition["grasp_penalty"] or 0.0
    return recorded


def _check_shapes(place, transition, first):
    """Raise where shapes differ from the file's first transition, next_observations included."""
    for group in ("observations", "next_observations"):
        for key, array in transition[group].items():
            wanted = first["observations"][key].shape
            if array.shape != wanted:
                raise place.error(
                    f"{group}[{key!r}]",
                    f"shape {array.shape}",
                    f"{wanted}, as in transition 0",
                    "record one camera and state setting per file",
                )
    if transition["actions"].shape != first["actions"].shape:
        raise place.error(
            "actions",
            f"shape {transition['actions'].shape}",
            f"{first['actions'].shape}, as in transition 0",
            "record one robot setup per file",
        )


def share_frames(transitions: list[dict]) -> list[int]:
    """Make equal arrays of next_observations and the following observations one object, in place.

    Returns the indices t, inside an episode, where next_observations differ from the observations of t + 1.
    """
    mismatched = []
    for index, (current, following) in enumerate(zip(transitions, transitions[1:], strict=False)):
        arrays, differs = current["next_observations"], False
        for key, array in following["observations"].items():
            if arrays[key] is array or np.array_equal(arrays[key], array):
                arrays[key] = array
            else:
                differs = True
        if differs and not current["dones"]:
            mismatched.append(index)
    return mismatched


def _episode_ids(transitions):
    """Return (N,) int64, from 0: the number of transitions with dones before each."""
    dones = np.array([transition["dones"] for transition in transitions], np.int64)
    return np.cumsum(dones) - dones


def _all_failed(paths, demos):
    """A line on demos in which nothing succeeded. Raises DataError where nothing is rewarded either."""
    count, rewards = len(np.unique(demos.episode_ids)), rewards_of(demos)
    with_successes = os.path.join(os.path.dirname(paths[0]), "demos.pkl")
    there = os.path.exists(with_successes) and not any(os.path.samefile(with_successes, path) for path in paths)
    both = f"--demo_paths {with_successes} {paths[0]}" if there else "--demo_paths demos.pkl failed_demos.pkl"
    remedy = (
        f"give the file with the successes as well ({both}; record_demos.py --keep_failures writes both), or, if these "
        "did succeed, set rewards to 1.0 in the transition that reaches the goal"
    )
    failed = f"all {count} episodes failed" if count > 1 else "its one episode failed"
    if not rewards.any():
        place = Place(paths[-1], 0, len(rewards) - 1)
        raise place.error("rewards", f"0 throughout: {failed}", "a reward where the task succeeds", remedy)
    kind = kind_of_rewards(demos.transitions, demos.episode_ids)
    if not (kind.shaped or kind.by_end):
        failed = f"{describe(kind, rewards)}: none is above an ordinary step's, so no success can be told: {failed}"
    return f"{paths[-1]}: rewards: {failed}; {remedy}"


def _other_rewards(first_path, demos, path, part):
    """A line where an ordinary step is rewarded otherwise than in the files before: one critic cannot learn both."""
    if is_single(path) or is_single(first_path):
        return []
    first, here = (kind_of_rewards(d.transitions, d.episode_ids) for d in (demos, part))
    if first.shaped == here.shaped and (first.shaped or abs(first.ordinary - here.ordinary) <= SAME):
        return []
    texts = [describe(k, rewards_of(d)) for k, d in ((here, part), (first, demos))]
    return [f"{path}: rewards: {texts[0]}; in {first_path}: {texts[1]}; one scale is wanted throughout"]


def is_single(path):
    """Whether `path` is an episode file of a run: one episode, which may have failed."""
    return not os.path.isdir(path) and is_episode_file(path)


def _check_same_layout(first_path, demos, path, part):
    """Raise where a further file has other images, state or actions than the first."""
    shapes = part.image_shapes
    pairs = [(f"observations[{key!r}]", shape, shapes[key]) for key, shape in demos.image_shapes.items()]
    pairs.append(("observations['state']", (demos.state_dim,), (part.state_dim,)))
    pairs.append(("actions", (demos.action_dim,), (part.action_dim,)))
    for key, wanted, got in pairs:
        if got != wanted:
            raise Place(path, 0).error(
                key, f"shape {got}", f"{wanted}, as in {first_path}", "give files of one robot setup only"
            )

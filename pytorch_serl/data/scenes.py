"""Which classifier frames were recorded together: what shows one scene must lie on one side of a split.

A network learns scenes by heart. A success whose scene is known from training failures only is called a failure, and
the figures then say nothing about success and failure; the other way around they flatter.
"""

import datetime
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

CLOCKS = ("timestamp", "timestamps", "time_stamp", "time", "stamp")  # keys that a frame's time is looked for under
PAUSE = 10  # a file's episodes are told apart where this many usual intervals pass between two frames
CLASS_WORDS = r"success(?:es|ful)?|succeeded|succ|failures?|fail(?:ed|s)?|positives?|pos|negatives?|neg"
TIME_STAMP = re.compile(r"\d{4}-?\d\d-?\d\d[-_ T]?\d\d[-:_.]?\d\d[-:_.]?\d\d")


@dataclass
class Mark:
    """What a recorded frame tells of when and where it was taken; None where it tells nothing.

    scene: number or name of the scene, as text. time: seconds, of any clock. content, following: stand for the pixels
    of the frame and of its `next_observations`, None for blank ones. done: the episode ends here.
    """

    scene: str | None = None
    time: float | None = None
    content: int | None = None
    following: int | None = None
    done: bool = False


def read_mark(item: dict, image_keys: list[str], done: bool) -> Mark:
    """The mark of a transition; what cannot be understood is as if it were absent."""
    content, following = (_pixels(item.get(name), image_keys) for name in ("observations", "next_observations"))
    return Mark(_scene_name(_look(item, ("scene",))), _seconds(_look(item, CLOCKS)), content, following, done)


def _pixels(observation, image_keys):
    """A number that stands for the pixels of all cameras, equal in this process for equal ones; None for blank ones."""
    images = [observation.get(key) for key in image_keys] if isinstance(observation, dict) else [None]
    if not all(isinstance(image, np.ndarray) and image.size for image in images):
        return None
    if all((image == image.flat[0]).all() for image in images):
        return None
    return hash(tuple(image.tobytes() for image in images))


def _look(item, names):
    for place in (item, item.get("infos"), item.get("info"), item.get("observations")):
        for name in names if isinstance(place, dict) else ():
            if place.get(name) is not None:
                return _plain(place[name])
    return None


def _plain(value):
    """A Python value for a numpy scalar or an array of one."""
    return value.reshape(-1)[0].item() if isinstance(value, (np.ndarray, np.generic)) and value.size == 1 else value


def _scene_name(value):
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _seconds(value):
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # no NaN
    return float(value) if fine else None


# ---------------------------------------------------------------- a file's episodes


def episodes_of(marks: list[Mark]) -> list[int]:
    """Number of the episode of each of a file's frames, from 0.

    An episode ends with `dones` and where the scene changes. Beyond that, where the file's frames mostly follow one
    another, it ends where the next frame is another than the recorded `next_observations`; and, in a file without any
    of this, where the clock goes back or pauses.
    """
    ends = [a.done or a.scene != b.scene for a, b in zip(marks, marks[1:])]
    goes_on = [
        None if end or None in (a.following, b.content) else a.following == b.content
        for end, a, b in zip(ends, marks, marks[1:])
    ]
    if goes_on.count(True) > goes_on.count(False):
        ends = [end or known is False for end, known in zip(ends, goes_on)]
    if not any(ends):
        ends = _pauses([mark.time for mark in marks])
    return [0, *np.cumsum(ends, dtype=int).tolist()]


def _pauses(times):
    if len(times) < 3 or None in times:
        return [False] * (len(times) - 1)
    steps = np.diff(times)
    usual = np.median(steps[steps > 0]) if (steps > 0).any() else np.inf
    return ((steps < 0) | (steps > PAUSE * usual)).tolist()


# ---------------------------------------------------------------- groups of episodes


class Links:
    """Groups of episodes: at first each for itself, then joined by what they have in common."""

    def __init__(self, count: int):
        self.parents = list(range(count))

    def group(self, node: int) -> int:
        while self.parents[node] != node:
            self.parents[node] = node = self.parents[self.parents[node]]
        return node

    def join(self, keys: Iterable[tuple[Hashable, int]]) -> None:
        """Join the episodes that have a key in common, of pairs (key, episode)."""
        first = {}
        for key, node in keys:
            ours, theirs = self.group(node), self.group(first.setdefault(key, node))
            self.parents[max(ours, theirs)] = min(ours, theirs)

    def groups(self) -> np.ndarray:
        return np.array([self.group(node) for node in range(len(self.parents))])


def shared_frames(marks: list[Mark], episode: np.ndarray) -> list[tuple[Hashable, int]]:
    """(key, episode) for frames that a few episodes have in common, pixel for pixel.

    A frame of many of them is no such sign: a camera that sees the same at each start, or nothing.
    """
    found = {}
    for mark, number in zip(marks, episode.tolist()):
        for content in {mark.content, mark.following} - {None}:
            found.setdefault(content, set()).add(number)
    most = max(3, len(np.unique(episode)) // 10)
    return [(key, number) for key, numbers in found.items() if 1 < len(numbers) <= most for number in sorted(numbers)]


def shared_times(marks: list[Mark], episode: np.ndarray, labels: np.ndarray) -> list[tuple[Hashable, int]]:
    """(key, episode) for episodes of different classes whose times overlap, or whose success follows the failure.

    A clock that starts anew with each episode tells nothing: then those of one class overlap, too.
    """
    timed = [row for row, mark in enumerate(marks) if mark.time is not None]
    if not timed:
        return []
    times, numbers = np.array([marks[row].time for row in timed]), episode[timed]
    names, index = np.unique(numbers, return_inverse=True)
    start, end = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.minimum.at(start, index, times)
    np.maximum.at(end, index, times)
    label = np.zeros(len(names), int)
    label[index] = labels[timed]
    if any(_overlapping(start[label == value], end[label == value]) > 0.5 for value in (0, 1)):
        return []
    steps = np.diff(times)[np.diff(numbers) == 0]
    usual = np.median(steps[steps > 0]) if (steps > 0).any() else 0.0
    pairs = []
    for success in np.flatnonzero(label == 1):
        reach = end + np.where(end < start[success], 2 * usual, 0.0)  # a failure may end just before
        for failure in np.flatnonzero((label == 0) & (start <= end[success]) & (reach >= start[success])):
            key = ("time", len(pairs))
            pairs += [(key, int(names[success])), (key, int(names[failure]))]
    return pairs


def _overlapping(start, end):
    """Share of the intervals that begin before an earlier one has ended."""
    order = np.argsort(start, kind="stable")
    if len(order) < 2:
        return 0.0
    return float(np.mean(start[order][1:] <= np.maximum.accumulate(end[order])[:-1]))


# ---------------------------------------------------------------- names of files


def pair_names(names: list[str], labels: list[int]) -> tuple[list[Hashable], str]:
    """A key for each file, equal for files that were recorded together by their names, and how they were paired.

    `names` are paths below the classes' directories. Equal are the same path, the words for the class left out; else
    the same time stamp; else the same numbers, where no other file of the class has them.
    """
    keys: list[Hashable] = [None] * len(names)
    used = []
    ways = (
        (_plain_name, "file name", False),
        (_time_stamp, "time stamp of the files", False),
        (_numbers, "number of the files", True),
    )
    for way, text, alone in ways:
        rows = {}
        for row, name in enumerate(names):
            if keys[row] is None and way(name):
                rows.setdefault(way(name), ([], []))[labels[row]].append(row)
        pairs = {key: failures + successes for key, (failures, successes) in rows.items() if failures and successes}
        if alone and any(len(failures) > 1 or len(successes) > 1 for failures, successes in rows.values()):
            continue
        for key, together in pairs.items():
            for row in together:
                keys[row] = (text, key)
        used += [text] * bool(pairs)
    return [("alone", row) if key is None else key for row, key in enumerate(keys)], " or ".join(used)


def _plain_name(name):
    """The path without its ending and without words for the class."""
    name = re.sub(r"\.pkl$", "", name.lower())
    return re.sub(rf"(?<![a-z])(?:{CLASS_WORDS})(?![a-z])", "", name).strip("-_. ")


def _time_stamp(name):
    return tuple(re.sub(r"\D", "", stamp) for stamp in TIME_STAMP.findall(name))


def _numbers(name):
    return tuple(int(digits) for digits in re.findall(r"\d+", TIME_STAMP.sub("", name)))

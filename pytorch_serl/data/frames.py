"""Read and check classifier data, success and failure pickles, and split it without leaks into two parts."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from pytorch_serl.data.checks import Place, load_transitions, read_flag, read_observation

IMBALANCE = 10  # above this ratio of the classes, say so
CLASSES = ("failure", "success")  # index = label


@dataclass
class ClassifierFrames:
    """Labelled camera frames, checked.

    images: {image key: uint8 (N, H, W, 3)}. labels: (N,) int64, 1 success. files: (N,) int64, index into
    file_names. episode: (N,) int64, counted over all files; an episode ends with dones or with its file.
    warnings: what is odd but usable, with numbers.
    """

    images: dict[str, np.ndarray]
    labels: np.ndarray
    files: np.ndarray
    file_names: list[str]
    episode: np.ndarray
    warnings: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return several lines: frames, files and episodes per class, image shapes, memory, warnings."""
        sizes = ", ".join(f"{key} {'x'.join(map(str, array.shape[1:]))}" for key, array in self.images.items())
        lines = [f"classifier frames: {len(self.labels)}, images {sizes}"]
        for label in (1, 0):
            rows = self.labels == label
            lines.append(
                f"  {CLASSES[label]}: {rows.sum()} frames ({rows.mean():.1%}) in {len(np.unique(self.files[rows]))} "
                f"files, {len(np.unique(self.episode[rows]))} episodes"
            )
        lines.append(f"  memory: {sum(array.nbytes for array in self.images.values()) / 1e9:.3f} GB")
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])


def read_classifier_frames(
    success_dir: str | PathLike, failure_dir: str | PathLike, image_keys: str | Iterable[str]
) -> ClassifierFrames:
    """Read every *.pkl of two directories: lists of transitions of which only the observations are used.

    The directory decides the label; a recorded `labels` that contradicts it is an error. Raises DataError (a
    ValueError of one line), UnsafePickleError or ValueError as read_demos does.
    """
    image_keys = [image_keys] if isinstance(image_keys, str) else list(image_keys)
    if not image_keys or len(set(image_keys)) != len(image_keys):
        raise ValueError(f"image_keys: got {image_keys}, wanted at least one key and none twice")
    if Path(success_dir).resolve() == Path(failure_dir).resolve():
        raise ValueError(f"{success_dir}: got one directory as success_dir and failure_dir, wanted two")
    images = {key: [] for key in image_keys}
    labels, files, file_names, episode = [], [], [], []
    for directory, label in ((success_dir, 1), (failure_dir, 0)):
        for path in _pickles(directory, label):
            file_episodes = _read_file(str(path), label, images)
            episode += [(episode[-1] + 1 if episode else 0) + number for number in file_episodes]
            labels += [label] * len(file_episodes)
            files += [len(file_names)] * len(file_episodes)
            file_names.append(str(path))
    stacked = {key: np.stack(images.pop(key)) for key in image_keys}  # one camera at a time in memory twice
    frames = ClassifierFrames(stacked, np.array(labels), np.array(files), file_names, np.array(episode))
    frames.warnings = _find_oddities(frames)
    return frames


def _pickles(directory, label):
    place = Place(str(directory))
    if not Path(directory).is_dir():
        raise place.error(f"{CLASSES[label]}_dir", "no such directory", "a directory of pickles", "check the path")
    paths = sorted(path for path in Path(directory).glob("[!.]*.pkl") if path.is_file())
    if not paths:
        raise place.error(
            f"{CLASSES[label]}_dir",
            "no *.pkl file (an empty class)",
            f"at least one with {CLASSES[label]} frames",
            "record frames of this class or move the files here",
        )
    return paths


def _read_file(path, label, images):
    """Append the file's images to `images` and return the episode number of each of its frames, from 0."""
    raw = load_transitions(path)
    episodes, number = [], 0
    for index, item in enumerate(raw):
        place = Place(path, index)
        observation = read_observation(place, "observations", item, list(images), has_state=False)
        for key, frames in images.items():
            if frames and observation[key].shape != frames[0].shape:
                raise place.error(
                    f"observations[{key!r}]",
                    f"shape {observation[key].shape}",
                    f"{frames[0].shape}, as in the first frame",
                    "record one camera setting throughout",
                )
            frames.append(observation[key])
        _check_label(place, item, label)
        episodes.append(number)
        number += "dones" in item and read_flag(place, "dones", item["dones"])
        raw[index] = None  # frees what is not used
    return episodes


def _check_label(place, item, label):
    if item.get("labels") is None:
        return
    got = int(read_flag(place, "labels", item["labels"], "store 1 for success, 0 for failure"))
    if got != label:
        raise place.error(
            "labels",
            f"{got} ({CLASSES[got]})",
            f"{label}, as the {CLASSES[label]} directory says",
            "move the file to the other directory or correct the label",
        )


def _find_oddities(frames):
    texts = []
    failures, successes = np.bincount(frames.labels, minlength=2)
    if max(failures, successes) > IMBALANCE * min(failures, successes):
        texts.append(f"labels: {successes} success and {failures} failure frames; the smaller class is thin")
    for key, array in frames.images.items():
        flat = array.reshape(len(array), -1)
        blank = int((flat.max(axis=1) == flat.min(axis=1)).sum())
        if blank:
            texts.append(f"observations[{key!r}]: {blank} of {len(array)} images are blank (one value)")
    label_of, both = {}, 0
    for row, label in enumerate(frames.labels):
        content = hash(tuple(array[row].tobytes() for array in frames.images.values()))
        both += label_of.setdefault(content, label) != label
    if both:
        texts.append(f"labels: {both} frames are in both classes, pixel for pixel: no network can tell them apart")
    return texts


def split_by_group(
    frames: ClassifierFrames, val_fraction: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, str]:
    """Split frames into a training and a validation part without a group in both.

    Groups are a class's files where it has several; else the episodes of its file; else contiguous blocks of
    its frames, since neighbours look alike. At least one group per class goes to each part.
    Returns train_idx and val_idx (sorted int64 row indices) and a text that says which groups were used.
    Raises ValueError where a class has one frame only or val_fraction is not in (0, 1).
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction: got {val_fraction}, wanted a share between 0 and 1")
    rng = np.random.default_rng(seed)
    in_val = np.zeros(len(frames.labels), bool)
    texts = []
    for label in (1, 0):
        rows = np.flatnonzero(frames.labels == label)
        if len(rows) < 2:
            raise ValueError(
                f"{CLASSES[label]} frames: got {len(rows)}, wanted at least 2 for two parts; "
                "record more frames of this class"
            )
        groups, kind = _groups(frames, rows, val_fraction)
        in_val[rows] = np.isin(groups, _choose(groups, val_fraction, rng))
        texts.append(f"{CLASSES[label]} by {kind}, {in_val[rows].sum()} of {len(rows)} frames for validation")
    return np.flatnonzero(~in_val), np.flatnonzero(in_val), "split: " + "; ".join(texts)


def _groups(frames, rows, val_fraction):
    """Return the group of each row, and the groups' kind."""
    for groups, kind in ((frames.files[rows], "file"), (frames.episode[rows], "episode")):
        if len(np.unique(groups)) > 1:
            return groups, kind
    blocks = min(len(rows), max(2, round(1 / val_fraction)))
    return np.arange(len(rows)) * blocks // len(rows), "contiguous block"


def _choose(groups, val_fraction, rng):
    """Draw groups for validation until they hold val_fraction of the rows as nearly as whole groups can."""
    names, sizes = np.unique(groups, return_counts=True)
    wanted, held, chosen = val_fraction * len(groups), 0, []
    for which in rng.permutation(len(names)):
        too_much = held + sizes[which] - wanted > wanted - held  # further from the share than without it
        if not too_much and len(chosen) < len(names) - 1:
            chosen.append(which)
            held += sizes[which]
    return names[chosen] if chosen else names[[int(np.argmin(sizes))]]

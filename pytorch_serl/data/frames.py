"""Read and check classifier data: success and failure pickles."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from pytorch_serl.data.checks import Place, load_transitions, read_flag, read_observation
from pytorch_serl.data.scenes import Links, Mark, episodes_of, pair_names, read_mark, shared_frames, shared_times

IMBALANCE = 10  # above this ratio of the classes, say so
CLASSES = ("failure", "success")  # index = label
DRAWS = 16  # of scenes for validation; the split is the first of them that is as good as the best
SLACK = 0.1  # by which the shares held out of both classes may be off more than the best draw's


@dataclass
class ClassifierFrames:
    """Labelled camera frames, checked.

    images: {image key: uint8 (N, H, W, 3)}. labels: (N,) int64, 1 success. files: (N,) int64, index into
    file_names. episode: (N,) int64, counted over all files; an episode ends with its file, with dones, and as
    `episodes_of` says. marks: N, what tells which frames were recorded together. names: of each file, below its
    class's directory. warnings: what is odd but usable, with numbers.
    """

    images: dict[str, np.ndarray]
    labels: np.ndarray
    files: np.ndarray
    file_names: list[str]
    episode: np.ndarray
    marks: list[Mark]
    names: list[str]
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
    """Read every *.pkl below two directories: lists of transitions of which the observations are used.

    The directory decides the label; a recorded `labels` that contradicts it is an error. `scene` (a number or a name
    per frame, also in `infos`), times, `dones` and `next_observations`, where they are there, tell which frames were
    recorded together. Names that begin with a dot are passed over. Raises DataError (a ValueError of one line),
    UnsafePickleError or ValueError as read_demos does.
    """
    image_keys = [image_keys] if isinstance(image_keys, str) else list(image_keys)
    if not image_keys or len(set(image_keys)) != len(image_keys):
        raise ValueError(f"image_keys: got {image_keys}, wanted at least one key and none twice")
    if Path(success_dir).resolve() == Path(failure_dir).resolve():
        raise ValueError(f"{success_dir}: got one directory as success_dir and failure_dir, wanted two")
    images = {key: [] for key in image_keys}
    labels, files, file_names, episode, marks, names = [], [], [], [], [], []
    for directory, label, other in ((success_dir, 1, failure_dir), (failure_dir, 0, success_dir)):
        for path in _pickles(directory, label, other):
            file_marks = _read_file(str(path), label, images)
            episode += [(episode[-1] + 1 if episode else 0) + number for number in episodes_of(file_marks)]
            marks += file_marks
            labels += [label] * len(file_marks)
            files += [len(file_names)] * len(file_marks)
            file_names.append(str(path))
            names.append(path.relative_to(directory).as_posix())
    stacked = {key: np.stack(images.pop(key)) for key in image_keys}  # one camera at a time in memory twice
    frames = ClassifierFrames(stacked, np.array(labels), np.array(files), file_names, np.array(episode), marks, names)
    frames.warnings = _find_oddities(frames)
    return frames


def _pickles(directory, label, other):
    """The pickles below a class's directory, without those below the other class's where that lies inside."""
    place = Place(str(directory))
    if not Path(directory).is_dir():
        raise place.error(f"{CLASSES[label]}_dir", "no such directory", "a directory of pickles", "check the path")
    found = [path for path in sorted(Path(directory).rglob("*.pkl")) if path.is_file()]
    if Path(directory).resolve() in Path(other).resolve().parents:
        found = [path for path in found if Path(other).resolve() not in path.resolve().parents]
    paths = [path for path in found if not any(p.startswith(".") for p in path.relative_to(directory).parts)]
    if not paths:
        raise place.error(
            f"{CLASSES[label]}_dir",
            "no *.pkl file (an empty class)",
            f"at least one with {CLASSES[label]} frames",
            "record frames of this class or move the files here",
        )
    return paths


def _read_file(path, label, images):
    """Append the file's images to `images` and return the mark of each of its frames."""
    raw = load_transitions(path)
    marks = []
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
        done = "dones" in item and read_flag(place, "dones", item["dones"])
        marks.append(read_mark(item, list(images), done))
        raw[index] = None  # frees what is not used
    return marks


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


# ---------------------------------------------------------------- training and validation


def split_by_group(
    frames: ClassifierFrames, val_fraction: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, str]:
    """Split frames into a training and a validation part; what was recorded together lies in one of them.

    Together belong frames of one scene number; of the rest, files of the same name in both classes, and episodes that
    share frames or times. Where that leaves a class in one piece, or the classes apart, the same stretch of both is
    held out: of a class's files where it has several, else of its episodes, else of its frames, in their order.
    Of each class, a part is on either side.
    Returns train_idx and val_idx (sorted int64 row indices) and a text that says which rule was used, and what it
    means where the classes could not be paired.
    Raises ValueError where a class has one frame only or val_fraction is not in (0, 1).
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction: got {val_fraction}, wanted a share between 0 and 1")
    for label in (1, 0):
        if (count := int((frames.labels == label).sum())) < 2:
            raise ValueError(
                f"{CLASSES[label]} frames: got {count}, wanted at least 2 for two parts; "
                "record more frames of this class"
            )
    rng = np.random.default_rng(seed)
    options = ((True, True), (True, False), (False, True))
    ways = [_linked(frames, numbers, *option) for numbers in (True, False) for option in options]
    if fitting := [way for way in ways if _is_paired(frames.labels, *way[:2])]:
        groups, kinds, rules = fitting[0]
        in_val = np.isin(groups, _choose(groups, frames.labels, val_fraction, rng))
        rule = _describe_groups(frames.labels, groups, in_val, rules)
    else:
        in_val, kinds, rule = _stretch(frames, ways, val_fraction, rng)
    parts = []
    for label in (1, 0):
        held, count = int(in_val[frames.labels == label].sum()), int((frames.labels == label).sum())
        parts.append(f"{CLASSES[label]} by {kinds[label]}, {held} of {count} frames for validation")
    return np.flatnonzero(~in_val), np.flatnonzero(in_val), f"split: {'; '.join(parts)}\n  {rule}"


def _linked(frames, numbers, files, contents):
    """Group of each row, the groups' kind by class, and what joined them.

    Scene `numbers` are taken as they are. Episodes without one are joined by `files` (a file's own, and files paired
    by name) and by `contents` (frames and times in common).
    """
    links, rules = Links(int(frames.episode[-1]) + 1), []
    numbered = np.array([numbers and mark.scene is not None for mark in frames.marks])
    if numbered.any():
        rules.append("scene number")
        links.join((frames.marks[row].scene, frames.episode[row]) for row in np.flatnonzero(numbered))
    plain = np.flatnonzero(~numbered)
    if files and len(plain):
        labels = [frames.labels[row] for row in np.unique(frames.files, return_index=True)[1]]
        keys, rule = pair_names(frames.names, labels)
        rules += [rule] * bool(rule)
        links.join((keys[frames.files[row]], frames.episode[row]) for row in plain)
    if contents and len(plain):
        marks, episode = [frames.marks[row] for row in plain], frames.episode[plain]
        for rule, keys in (
            ("shared frames", shared_frames(marks, episode)),
            ("shared times", shared_times(marks, episode, frames.labels[plain])),
        ):
            rules += [rule] * bool(keys)
            links.join(keys)
    kinds = ["scene" if numbered[frames.labels == label].all() else "file" if files else "episode" for label in (0, 1)]
    return links.groups()[frames.episode], kinds, rules


def _groups_of(groups, labels):
    """The set of groups that each class is in."""
    return [set(np.unique(groups[labels == label]).tolist()) for label in (0, 1)]


def _is_paired(labels, groups, kinds):
    """Whether both classes can be split by these groups, and most of the successes share theirs with failures.

    Where every frame has a scene number, who recorded them has said what belongs together.
    """
    failure, success = _groups_of(groups, labels)
    if min(len(failure), len(success)) < 2:
        return False
    return kinds == ["scene", "scene"] or np.isin(groups[labels == 1], list(failure)).mean() >= 0.5


def _choose(groups, labels, share, rng):
    """Draw groups that hold `share` of both classes as nearly as whole groups can, a part of each on either side."""
    names, index = np.unique(groups, return_inverse=True)
    sizes = np.stack([np.bincount(index[labels == label], minlength=len(names)) for label in (0, 1)], 1)
    sizes = sizes / sizes.sum(0)  # (G, 2) share of each class

    def cost(held):
        return np.abs(held - share).sum() + 10 * (held == 0).sum()

    def draw():
        held, chosen = np.zeros(2), []
        for which in rng.permutation(len(names)):
            more = held + sizes[which]
            if cost(more) < cost(held) and (more < 1 - 1e-9).all():
                held, chosen = more, [*chosen, which]
        return cost(held), chosen

    draws = [draw() for _ in range(DRAWS)]
    enough = min(drawn[0] for drawn in draws) + SLACK
    return names[next(chosen for off, chosen in draws if off <= enough)]


def _describe_groups(labels, groups, in_val, rules):
    failure, success = _groups_of(groups, labels)
    held = len(np.unique(groups[in_val]))
    text = f"held out together by {' and '.join(rules)}; {held} of {len(failure | success)} scenes are held out"
    if not failure & success:
        return text + (
            "\n  warning: no scene is in both classes. A network can tell them apart by the scene alone: the figures "
            "do not show that it sees success. Record failures of the success scenes, too"
        )
    for one, other, name in ((success, failure, "successes"), (failure, success, "failures")):
        if alone := len(one - other):
            text += f", {alone} have {name} only"
    return text


def _stretch(frames, ways, share, rng):
    """Hold out the same stretch of both classes; returns the rows' mask, the units' kind by class, and a text."""
    units, kinds = [None, None], [None, None]
    for label in (0, 1):
        rows = frames.labels == label
        by_frame = (np.arange(len(rows)), ["contiguous block"] * 2, None)
        for groups, names, _ in (*ways, by_frame):
            found, first, index = np.unique(groups[rows], return_index=True, return_inverse=True)
            if len(found) > 1:
                units[label], kinds[label] = np.argsort(np.argsort(first))[index], names[label]  # in their order
                break
    in_val = np.zeros(len(frames.labels), bool)
    for label, held in zip((0, 1), _same_stretch(units, share, rng)):
        in_val[frames.labels == label] = held
    counts = [int(numbers.max()) + 1 for numbers in units]
    return _whole_groups(frames.labels, ways[-1][0], in_val), kinds, _describe_stretch(frames, kinds, counts)


def _same_stretch(units, share, rng):
    """For failure and success, which rows lie in the stretch; `units` are the numbers of each one's, in their order."""
    sizes = [np.bincount(numbers) / len(numbers) for numbers in units]  # shares of the class
    lengths = [int(np.clip(round(share * len(s)), 1, len(s) - 1)) for s in sizes]
    rooms = [len(s) - length for s, length in zip(sizes, lengths)]
    most = int(np.argmax(rooms))
    step = lengths[most] if len(sizes[most]) == len(units[most]) else 1  # scenes of as many frames each stay whole
    places = np.arange(0, rooms[most] + 1, step) / rooms[most]  # of the stretch, 0 to 1
    begins = [np.round(places * room).astype(int) for room in rooms]
    sums = [np.append(0, np.cumsum(s)) for s in sizes]
    cost = sum(abs(s[b + length] - s[b] - share) for s, b, length in zip(sums, begins, lengths)).round(6)
    which = rng.choice(np.flatnonzero(cost == cost.min()))
    return [(n >= b[which]) & (n < b[which] + length) for n, b, length in zip(units, begins, lengths)]


def _whole_groups(labels, groups, in_val):
    """`in_val` with each group on the side where most of it is, where that leaves both classes on both sides."""
    index = np.unique(groups, return_inverse=True)[1]
    share = np.bincount(index, in_val) / np.bincount(index)
    whole = share[index] > 0.5
    both_sides = all(0 < whole[labels == label].mean() < 1 for label in (0, 1))
    return whole if both_sides else in_val


def _describe_stretch(frames, kinds, counts):
    files = np.bincount([frames.labels[row] for row in np.unique(frames.files, return_index=True)[1]], minlength=2)
    if files.tolist() == [1, 1]:
        text = "held out together: the same stretch of both files"
        if kinds == ["episode", "episode"] and counts[0] == counts[1]:
            return f"{text}, episode by episode; true if both were recorded in the same order"
        return f"{text}, by position; true if both were recorded in the same order, except for scenes at its ends"
    return (
        "warning: success and failure frames cannot be paired: most successes have no scene number, file name, frame "
        "or time in common with failures. The same stretch of both, in the order of their files, is held out instead. "
        "Where a scene lies on both sides the figures mean little: they are too low where only its other class was "
        "trained on (and training stops too early), too high where the same class was. Give both files of a scene the "
        "same name, or each frame a 'scene' number"
    )

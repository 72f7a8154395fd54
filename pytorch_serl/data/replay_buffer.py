"""Replay buffer that stores every frame once and hands out next observations by index.

A transition holds two frame numbers. Whether a transition's first frame is the one already stored last is decided by
comparing contents, so sharing is right by construction: a new episode, a burst of interventions or the ring's seam
simply stores its first frame again. A frame is whatever fixed-shape array arrives: uint8 (H, W, C), or the frozen
backbone's float16 (views, *agent.feature_shape) from `agent.encode_frames`, of which sampling draws one view.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

Rows = tuple[np.ndarray, np.ndarray]  # an array, and which of its rows
COLUMNS = {  # of a transition, and what they are called here
    "actions": "action",
    "rewards": "reward",
    "masks": "mask",
    "dones": "done",
    "grasp_penalty": "grasp_penalty",
}
OPTIONAL = "grasp_penalty"  # 0 where there is none
FRAME_SLACK = 1.01  # frame slots per transition: one frame each, plus one at every episode's start


class ReplayBuffer:
    """Ring of transitions; safe to add to from one thread while another samples.

    Args:
        capacity: transitions kept; the oldest are dropped first (somewhat sooner where episodes are shorter than 100
            steps, since each stores one frame more than it has transitions).
        image_keys: cameras to store.
        seed: of the sampling.
    """

    def __init__(self, capacity: int, image_keys: Iterable[str], seed: int = 0):
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; wanted at least 1")
        self.capacity, self.image_keys = capacity, list(image_keys)
        self.num_slots = int(capacity * FRAME_SLACK) + 2
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._columns: dict[str, np.ndarray] = {}  # one row per transition
        self._frames: dict[str, np.ndarray] = {}  # one row per frame
        self._count = self._frame_count = self._tail = 0  # ever added, ever stored, oldest transition alive

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes: all but the lock, which no other process could share."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return self._count - self._tail

    @property
    def num_added(self) -> int:
        """Transitions ever added."""
        return self._count

    def allocate(self, observation: dict[str, np.ndarray], action_dim: int) -> None:
        """Reserve the arrays for observations shaped like this one; the memory itself is taken as it fills."""
        rows = {"action": (action_dim,)} | dict.fromkeys(("reward", "mask", "done", "grasp_penalty"), ())
        columns = {k: np.empty((self.capacity, *shape), np.float32) for k, shape in rows.items()}
        columns |= {k: np.empty(self.capacity, np.int64) for k in ("frame", "next_frame")}
        frames: dict[str, np.ndarray] = {}
        _need("observations", observation, self.image_keys)
        for key in self.image_keys:
            image = np.asarray(observation[key])
            if not (image.ndim == 3 and image.dtype in (np.uint8, np.float16)):
                raise ValueError(
                    f"observations[{key!r}] is {image.dtype} {image.shape}; wanted uint8 (H, W, C), or float16 "
                    "(views, channels, 16) from agent.encode_frames"
                )
            frames[key] = np.empty((self.num_slots, *image.shape), image.dtype)
        if "state" in observation:
            frames["state"] = np.empty((self.num_slots, *np.shape(observation["state"])), np.float32)
        self._columns, self._frames = columns, frames

    def full_size_gb(self) -> float:
        """Memory in GB (1e9 bytes) once the buffer is full."""
        return sum(a.nbytes for a in (*self._columns.values(), *self._frames.values())) / 1e9

    def size_gb(self) -> float:
        """Memory in GB (1e9 bytes) that is in use now."""
        used = ((self._columns, self._count, self.capacity), (self._frames, self._frame_count, self.num_slots))
        return sum(a.nbytes * min(n, of) / of for arrays, n, of in used for a in arrays.values()) / 1e9

    def add(self, transition: dict[str, Any]) -> None:
        """Store one transition in the demo file's format (`observations`, `actions`, `next_observations`, `rewards`,
        `masks`, `dones`, optional `grasp_penalty`).

        Raises ValueError, and stores nothing, when a key is missing, a shape or dtype differs from the first
        transition's, an action leaves [-1, 1], or a number is not finite.
        """
        _need("transition", transition, ["observations", "next_observations", *(k for k in COLUMNS if k != OPTIONAL)])
        values = {name: np.asarray(transition.get(key, 0.0), np.float32) for key, name in COLUMNS.items()}
        groups = {name: self._frame(transition[name]) for name in ("observations", "next_observations")}
        if values["action"].ndim != 1:
            raise ValueError(f"action is {values['action'].shape}; wanted (A,)")
        if not (np.abs(values["action"]) <= 1.0).all():
            raise ValueError(f"action {values['action']} has entries outside [-1, 1] or NaN")
        first = not self._columns
        if first:
            try:
                self.allocate(groups["observations"], len(values["action"]))
            except MemoryError as error:
                raise ValueError(
                    f"a buffer of {self.capacity:,} transitions does not fit into memory: {error}"
                ) from None
        try:
            self._check(groups, values)
        except ValueError:
            if first:  # what is refused says nothing of what others look like
                self._columns, self._frames = {}, {}
            raise
        with self._lock:
            obs, next_obs = groups.values()
            row = self._count % self.capacity
            values["frame"] = self._frame_count - 1 if self._is_newest(obs) else self._store(obs)
            values["next_frame"] = values["frame"] if self._is_newest(next_obs) else self._store(next_obs)
            for name, value in values.items():
                self._columns[name][row] = value
            self._count += 1
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Move the tail past what is overwritten: transitions beyond the capacity, or whose frame's slot is reused."""
        self._tail = max(self._tail, self._count - self.capacity)
        oldest_frame = self._frame_count - self.num_slots
        while self._tail < self._count and self._columns["frame"][self._tail % self.capacity] < oldest_frame:
            self._tail += 1

    def _frame(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        """What is stored of an observation: its images as they are, its state in float32."""
        frame = {key: np.asarray(observation[key]) for key in self.image_keys if key in observation}
        if "state" in observation:
            frame["state"] = np.asarray(observation["state"], np.float32)
        return frame

    def _check(self, groups: dict[str, dict[str, np.ndarray]], values: dict[str, np.ndarray]) -> None:
        """Raise ValueError where a transition does not fit the arrays."""
        for name, frame in groups.items():
            _need(name, frame, self._frames)
            for key, value in frame.items():
                stored = self._frames.get(key)
                if stored is None:
                    raise ValueError(f"{name} has a {key!r}; the transitions of this buffer have none")
                if value.shape != stored.shape[1:] or value.dtype != stored.dtype:
                    raise ValueError(
                        f"{name}[{key!r}] is {value.dtype} {value.shape}; this buffer holds {stored.dtype} "
                        f"{stored.shape[1:]}"
                    )
            if not np.isfinite(frame.get("state", 0.0)).all():
                raise ValueError(f"{name}['state'] is {frame['state']}; wanted finite numbers")
        for name, value in values.items():
            if value.shape != self._columns[name].shape[1:]:
                raise ValueError(f"{name} is {value.shape}; this buffer holds {self._columns[name].shape[1:]}")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} is {value}; wanted finite numbers")

    def _is_newest(self, frame: dict[str, np.ndarray]) -> bool:
        """Whether `frame` is the one stored last (contents, since an environment may reuse its arrays)."""
        newest = (self._frame_count - 1) % self.num_slots
        return self._frame_count > 0 and all(np.array_equal(frame[k], v[newest]) for k, v in self._frames.items())

    def _store(self, frame: dict[str, np.ndarray]) -> int:
        for key, stored in self._frames.items():
            stored[self._frame_count % self.num_slots] = frame[key]
        self._frame_count += 1
        return self._frame_count - 1

    def sample(self, batch_size: int) -> dict[str, Any]:
        """Draw transitions uniformly, with replacement.

        Returns: `observations`, `next_observations` (images (B, ...) uint8 or float16 features (B, C, 16); `state`
            (B, D) float32 where there is one), `actions` (B, A), `rewards`, `masks`, `dones`, `grasp_penalty` (B,).
        """
        return sample_each([self], batch_size)

    def in_order(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Every transition once, oldest first, as `sample` returns them (the last batch may be smaller).

        Of stored features it takes the first view, which is uncropped; the sampling's random numbers are left alone.
        """
        start, end = self._tail, self._count
        while start < end:
            with self._lock:
                start = max(start, self._tail)  # another thread may have overwritten what would be next
                numbers = np.arange(start, min(start + batch_size, end))
                batch = _copy([self._rows(numbers, draw_views=False)]) if len(numbers) else None
            if batch is not None:
                yield batch
            start += batch_size

    def _draw(self, batch_size: int) -> dict[str, Any]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; wanted at least 1")
        if not len(self):
            raise ValueError("the buffer is empty")
        return self._rows(self._rng.integers(self._tail, self._count, batch_size))

    def _rows(self, numbers: np.ndarray, draw_views: bool = True) -> dict[str, Any]:
        """Where the transitions of these numbers (B,), counted from the first one ever added, lie: (array, rows)."""
        rows = numbers % self.capacity
        obs, next_obs = (self._image_rows(self._columns[k][rows], draw_views) for k in ("frame", "next_frame"))
        columns = {key: (self._columns[name], rows) for key, name in COLUMNS.items()}
        return {"observations": obs, "next_observations": next_obs} | columns

    def _image_rows(self, frames: np.ndarray, draw_views: bool) -> dict[str, Rows]:
        """Where frame numbers (B,) lie; of stored features one view per sample, the same for all cameras."""
        slots, view, images = frames % self.num_slots, None if draw_views else 0, {}
        for key, stored in self._frames.items():
            if stored.dtype != np.float16:  # frames, the state
                images[key] = stored, slots
                continue
            views = stored.shape[1]
            view = self._rng.integers(0, views, len(frames)) if view is None else view
            images[key] = stored.reshape(-1, *stored.shape[2:]), slots * views + view  # (slots * views, C, 16)
        return images

    # ---------------------------------------------------------------- saving

    def export(self, since: tuple[int, int] = (0, 0), copy: bool = True) -> dict[str, Any]:
        """What was added since the counters `since` (an earlier export's `counters`).

        Exports taken one after another and given to `restore` in that order rebuild the buffer exactly. Without `copy`
        they are, where they can be, the buffer's own memory: for who is done with them before anything is added.
        """
        with self._lock:
            first = max(since[0], self._count - self.capacity)
            first_frame = max(since[1], self._frame_count - self.num_slots)
            rows = _ring(first, self._count, self.capacity, copy)
            slots = _ring(first_frame, self._frame_count, self.num_slots, copy)
            return {
                "counters": (self._count, self._frame_count),
                "tail": self._tail,
                "first": (first, first_frame),
                "columns": {k: torch.from_numpy(v[rows]) for k, v in self._columns.items()},
                "frames": {k: torch.from_numpy(v[slots]) for k, v in self._frames.items()},
            }

    def restore(self, part: dict[str, Any]) -> None:
        """Put one export back, at the very places it came from; a smaller buffer keeps the newest.

        Raises ValueError for other cameras or shapes, or when the export before this one was not restored.
        """
        columns, frames = part["columns"], part["frames"]
        first = part["first"][0]
        if first > max(self._count, part["tail"]):
            raise ValueError(f"a part of the saved buffer is missing: got transition {first}, wanted {self._count}")
        if columns and not self._columns:
            images = {k: np.empty(v.shape[1:], v.numpy().dtype) for k, v in frames.items()}
            self.allocate(images, columns["action"].shape[-1])
        for own, saved in ((self._columns, columns), (self._frames, frames)):
            wanted = {k: a.shape[1:] for k, a in own.items()}
            got = {k: tuple(v.shape[1:]) for k, v in saved.items()}
            if saved and got != wanted:
                raise ValueError(f"the saved buffer holds {got}, this one {wanted}")
        self._count, self._frame_count = part["counters"]
        for own, saved, count in ((self._columns, columns, self._count), (self._frames, frames, self._frame_count)):
            for name, values in saved.items():
                newest = values.numpy()[-len(own[name]) :]
                own[name][np.arange(count - len(newest), count) % len(own[name])] = newest
        self._tail = part["tail"]
        self._drop_oldest()

    def rng_state(self) -> str:
        """The state of the sampling, as text."""
        return json.dumps(self._rng.bit_generator.state)

    def set_rng_state(self, state: str) -> None:
        """Continue the sampling where `rng_state()` was taken."""
        self._rng.bit_generator.state = json.loads(state)


def _ring(first: int, end: int, size: int, copy: bool) -> np.ndarray | slice:
    """Where the numbers from `first` to before `end` lie in a ring; as a slice, which copies nothing, where it can."""
    start = first % size
    if not copy and start + end - first <= size:
        return slice(start, start + end - first)
    return np.arange(first, end) % size


def _need(name: str, content: dict[str, Any], keys: Iterable[str]) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{name}: got {sorted(content)}, wanted {missing} as well")


def sample_each(buffers: list[ReplayBuffer], batch_size: int) -> dict[str, Any]:
    """`batch_size` transitions of each buffer, one after the other in one batch; see `ReplayBuffer.sample`."""
    with ExitStack() as locks:
        for buffer in dict.fromkeys(buffers):  # each once: a lock waits for itself
            locks.enter_context(buffer._lock)
        return _copy([buffer._draw(batch_size) for buffer in buffers])


def _copy(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What lies at the rows of each part, one part after the other, each row copied once."""
    batch: dict[str, Any] = {}
    for key, first in parts[0].items():
        if isinstance(first, dict):
            batch[key] = _copy([part[key] for part in parts])
            continue
        array, ends = first[0], np.cumsum([len(part[key][1]) for part in parts])
        joined = np.empty((ends[-1], *array.shape[1:]), array.dtype)
        for part, place in zip(parts, np.split(joined, ends[:-1])):
            np.take(*part[key], axis=0, out=place, mode="clip")  # the default mode would copy through a buffer
        batch[key] = torch.from_numpy(joined)
    return batch

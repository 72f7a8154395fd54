"""Replay buffer that stores every frame once and hands out next observations by index.

A transition holds two frame numbers. Whether a transition's first frame is the one already stored last is decided by
comparing contents, so sharing is right by construction: a new episode, a burst of interventions or the ring's seam
simply stores its first frame again. A frame is whatever fixed-shape array arrives: uint8 (H, W, C), or the frozen
backbone's float16 (views, 512, 16) from `agent.encode_frames`, of which sampling draws one view.
"""

import json
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

FRAME_SLACK = 1.02  # frame slots per transition: one frame each, plus one at every episode's start


class ReplayBuffer:
    """Ring of transitions; safe to add to from one thread while another samples.

    Args:
        capacity: transitions kept; the oldest are dropped first (slightly sooner where episodes are very short).
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

    def __len__(self) -> int:
        return self._count - self._tail

    @property
    def num_added(self) -> int:
        """Transitions ever added."""
        return self._count

    def allocate(self, observation: dict[str, np.ndarray], action_dim: int) -> None:
        """Reserve the arrays for observations shaped like this one; the memory itself is taken as it fills."""
        state_shape = np.shape(observation["state"]) if "state" in observation else (0,)
        rows = {"action": (action_dim,), "state": state_shape, "next_state": state_shape}
        rows |= dict.fromkeys(("reward", "mask", "done", "grasp_penalty"), ())
        self._columns = {k: np.empty((self.capacity, *shape), np.float32) for k, shape in rows.items()}
        self._columns |= {k: np.empty(self.capacity, np.int64) for k in ("frame", "next_frame")}
        for key in self.image_keys:
            image = np.asarray(observation[key])
            self._frames[key] = np.empty((self.num_slots, *image.shape), image.dtype)

    def full_size_gb(self) -> float:
        """Memory in GB (1e9 bytes) once the buffer is full."""
        return sum(a.nbytes for a in (*self._columns.values(), *self._frames.values())) / 1e9

    def add(self, transition: dict[str, Any]) -> None:
        """Store one transition in the demo file's format (`observations`, `actions`, `next_observations`, `rewards`,
        `masks`, `dones`, optional `grasp_penalty`).

        Raises ValueError when a shape or dtype differs from the first transition's or an action leaves [-1, 1].
        """
        action = np.asarray(transition["actions"], np.float32)
        if not (np.abs(action) <= 1.0).all():
            raise ValueError(f"action {action} has entries outside [-1, 1] or NaN")
        obs, next_obs = transition["observations"], transition["next_observations"]
        if not self._columns:
            self.allocate(obs, len(action))
        self._check(obs, next_obs, action)
        with self._lock:
            row = self._count % self.capacity
            first = self._frame_count - 1 if self._is_newest(obs) else self._store(obs)
            second = first if self._is_newest(next_obs) else self._store(next_obs)
            values = {
                "action": action, "frame": first, "next_frame": second,
                "reward": transition["rewards"], "mask": transition["masks"], "done": transition["dones"],
                "grasp_penalty": transition.get("grasp_penalty", 0.0),
                "state": obs.get("state", ()), "next_state": next_obs.get("state", ()),
            }  # fmt: skip
            for name, value in values.items():
                self._columns[name][row] = value
            self._count += 1
            self._tail = max(self._tail, self._count - self.capacity)
            oldest_frame = self._frame_count - self.num_slots  # frames below this one are overwritten
            while self._columns["frame"][self._tail % self.capacity] < oldest_frame:
                self._tail += 1

    def _check(self, obs: dict, next_obs: dict, action: np.ndarray) -> None:
        wanted = {k: (a.shape[1:], a.dtype) for k, a in self._frames.items()}
        for name, observation in (("observations", obs), ("next_observations", next_obs)):
            for key, (shape, dtype) in wanted.items():
                image = observation[key]
                if image.shape != shape or image.dtype != dtype:
                    raise ValueError(
                        f"{name}[{key!r}] is {image.dtype} {image.shape}; this buffer holds {dtype} {shape}"
                    )
            state_shape = np.shape(observation.get("state", ()))
            if state_shape != self._columns["state"].shape[1:]:
                raise ValueError(
                    f"{name}['state'] is {state_shape}; this buffer holds {self._columns['state'].shape[1:]}"
                )
        if action.shape != self._columns["action"].shape[1:]:
            raise ValueError(f"action is {action.shape}; this buffer holds {self._columns['action'].shape[1:]}")

    def _is_newest(self, obs: dict[str, np.ndarray]) -> bool:
        """Whether the images of `obs` are those stored last (contents, since an environment may reuse its arrays)."""
        newest = (self._frame_count - 1) % self.num_slots
        return self._frame_count > 0 and all(np.array_equal(obs[k], self._frames[k][newest]) for k in self.image_keys)

    def _store(self, obs: dict[str, np.ndarray]) -> int:
        for key in self.image_keys:
            self._frames[key][self._frame_count % self.num_slots] = obs[key]
        self._frame_count += 1
        return self._frame_count - 1

    def sample(self, batch_size: int) -> dict[str, Any]:
        """Draw transitions uniformly, with replacement.

        Returns: `observations`, `next_observations` (images (B, ...) uint8 or float16 features (B, 512, 16); `state`
            (B, D) float32 where there is one), `actions` (B, A), `rewards`, `masks`, `dones`, `grasp_penalty` (B,).
        """
        with self._lock:
            if not len(self):
                raise ValueError("the buffer is empty")
            rows = self._rng.integers(self._tail, self._count, batch_size) % self.capacity
            c = {k: torch.from_numpy(v[rows]) for k, v in self._columns.items()}
            obs, next_obs = self._images(c["frame"].numpy()), self._images(c["next_frame"].numpy())
        if c["state"].shape[-1]:
            obs["state"], next_obs["state"] = c["state"], c["next_state"]
        return {
            "observations": obs, "next_observations": next_obs, "actions": c["action"], "rewards": c["reward"],
            "masks": c["mask"], "dones": c["done"], "grasp_penalty": c["grasp_penalty"],
        }  # fmt: skip

    def _images(self, frames: np.ndarray) -> dict[str, torch.Tensor]:
        """The stored rows of frame numbers (B,); of stored features one view per sample, the same for all cameras."""
        slots, view, images = frames % self.num_slots, None, {}
        for key, stored in self._frames.items():
            if stored.dtype == np.uint8:
                images[key] = torch.from_numpy(np.take(stored, slots, axis=0))
                continue
            views = stored.shape[1]
            view = self._rng.integers(0, views, len(frames)) if view is None else view
            rows = stored.reshape(-1, *stored.shape[2:])  # (slots * views, 512, 16), no copy
            images[key] = torch.from_numpy(np.take(rows, slots * views + view, axis=0))
        return images

    # ---------------------------------------------------------------- saving

    def export(self, since: tuple[int, int] = (0, 0)) -> dict[str, Any]:
        """What was added since the counters `since` (an earlier export's `counters`).

        Exports taken one after another and given to `restore` in that order rebuild the buffer exactly.
        """
        with self._lock:
            first = max(since[0], self._count - self.capacity)
            first_frame = max(since[1], self._frame_count - self.num_slots)
            rows = np.arange(first, self._count) % self.capacity
            slots = np.arange(first_frame, self._frame_count) % self.num_slots
            return {
                "counters": (self._count, self._frame_count), "tail": self._tail, "first": (first, first_frame),
                "columns": {k: torch.from_numpy(v[rows]) for k, v in self._columns.items()},
                "frames": {k: torch.from_numpy(v[slots]) for k, v in self._frames.items()},
            }  # fmt: skip

    def restore(self, part: dict[str, Any]) -> None:
        """Put one export back, at the very places it came from."""
        columns, frames = part["columns"], part["frames"]
        if columns and not self._columns:
            images = {k: np.empty(v.shape[1:], v.numpy().dtype) for k, v in frames.items()}
            state = {"state": np.empty(columns["state"].shape[1:])} if columns["state"].shape[-1] else {}
            self.allocate(images | state, columns["action"].shape[-1])
        if sorted(frames) != sorted(self._frames) and columns:
            raise ValueError(f"the saved buffer holds cameras {sorted(frames)}, this run uses {sorted(self._frames)}")
        (first, first_frame), (count, frame_count) = part["first"], part["counters"]
        for name, values in columns.items():
            self._columns[name][np.arange(first, count) % self.capacity] = values.numpy()
        for name, values in frames.items():
            self._frames[name][np.arange(first_frame, frame_count) % self.num_slots] = values.numpy()
        self._count, self._frame_count, self._tail = count, frame_count, part["tail"]

    def rng_state(self) -> str:
        """The state of the sampling, as text."""
        return json.dumps(self._rng.bit_generator.state)

    def set_rng_state(self, state: str) -> None:
        """Continue the sampling where `rng_state()` was taken."""
        self._rng.bit_generator.state = json.loads(state)


def concat_batches(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two batches one after the other, key by key (RLPD's half online, half demos)."""
    return {
        k: concat_batches(v, second[k]) if isinstance(v, dict) else torch.cat([v, second[k]]) for k, v in first.items()
    }

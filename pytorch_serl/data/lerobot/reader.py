"""LeRobot datasets, format v3 (parquet tables and videos), as demos: frames to transitions, by names from a mapping.

Needs `pip install -r requirements/lerobot-data.txt` (pyarrow, av), not the lerobot package. What a dataset cannot say
of itself stands in MAPPING beside its `meta` folder; docs/lerobot.md has every entry.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pytorch_serl.data.actions import SNAP_DISTANCE, check_action_dim, gripper_columns
from pytorch_serl.data.checks import NOT_FINITE, ROUNDING, Place, show
from pytorch_serl.data.lerobot.files import AGAIN, read_frames, read_table, require_packages, resized
from pytorch_serl.data.lerobot.metadata import INFO, check_info, entry_names, read_episodes, read_json
from pytorch_serl.data.rewards import SAME, reward_kind

MAPPING = "pytorch_serl.json"
FINAL, MASK, PENALTY = "final", "mask", "grasp_penalty"  # columns of datasets that this project wrote
PENALTIES = (PENALTY, "complementary_info.discrete_penalty")
READ = ("episode_index", "task_index", "next.reward", "next.success")  # beside those that the mapping names
KINDS = {  # of the entries of MAPPING
    "cameras": (dict,),
    "state": (list,),
    "action": (str,),
    "entries": (list,),
    "low": (list,),
    "high": (list,),
    "gripper": (dict,),
    "control_hz": (int, float),
    "combine": (str,),
    "image_size": (int,),
}
ITEMS = {"cameras": (str,), "state": (str,), "entries": (str, int), "low": (int, float), "high": (int, float)}
COMBINE = {"mean": np.mean, "sum": np.sum, "last": lambda x, axis: x[-1]}


@dataclass
class Mapping:
    """The entries of MAPPING; all have defaults but `gripper` with a learned one, and `combine` with `control_hz`.

    cameras: image key -> feature; default observation.images.KEY. state: features, put one after the other. action: a
    feature; entries: its entries to keep, by name or index, in the order of the action. low, high: what of the
    continuous entries, combined, becomes -1 and 1. gripper: commands, {"close": a, "hold": b, "open": c}, or positions,
    {"closed": a, "open": b}. control_hz: the rate to bring the frames to; combine: mean, sum or last of the actions in
    between. image_size: side in pixels to resize to; None keeps the size.
    """

    cameras: dict[str, str] | None = None
    state: list[str] | None = None
    action: str = "action"
    entries: list[str | int] | None = None
    low: list[float] | None = None
    high: list[float] | None = None
    gripper: dict[str, float] | None = None
    control_hz: float | None = None
    combine: str | None = None
    image_size: int | None = 128


def is_lerobot(path: str) -> bool:
    """Whether `path` is a folder with a LeRobot dataset."""
    return (Path(path) / INFO).is_file()


def load_lerobot(path: str, image_keys: list[str], setup_mode: str) -> tuple[list[dict], list[str]]:
    """The dataset's transitions in the demo format, masks included, and remarks on what was assumed.

    Raises DataError for what the dataset lacks or the mapping gets wrong, ValueError without pyarrow or av.
    """
    require_packages()
    place, root = Place(str(path)), Path(path)
    info = read_json(place, root / INFO)
    if not str(info.get("codebase_version", "")).startswith("v3"):
        raise place.error(
            "codebase_version", f"{info.get('codebase_version')}", "v3.x", "convert it with lerobot's own script"
        )
    check_info(place, info)
    mapping, features = _read_mapping(place, root), info["features"]
    cameras = {key: _camera(place, key, mapping, features) for key in image_keys}
    rows = _Rows(place, root, mapping, features, setup_mode)
    stride = _stride(place, mapping, info["fps"])
    episodes = read_episodes(place, root, rows.numbers)
    starts, transitions = [], []
    for episode in episodes:
        part, kept = rows.episode(episode["episode_index"], stride)
        starts.append(kept)
        transitions.append(part)
    for key, feature in cameras.items():
        frames = read_frames(place, root, info, feature, episodes, starts)
        for part, kept in zip(transitions, starts):
            images = [resized(next(frames), mapping.image_size) for _ in kept]
            for i, transition in enumerate(part):
                transition["observations"][key] = images[i]
                transition["next_observations"][key] = images[min(i + 1, len(images) - 1)]
    return [transition for part in transitions for transition in part], rows.remarks


def _read_mapping(place, root):
    content = read_json(place, root / MAPPING) if (root / MAPPING).exists() else {}
    see = "see docs/lerobot.md"
    if unknown := [name for name in content if name not in KINDS]:
        raise place.error(MAPPING, f"the entry {unknown[0]!r}", f"some of {', '.join(KINDS)}", see)
    for name, value in content.items():
        kinds = KINDS[name]
        if value is not None and not isinstance(value, kinds):
            raise place.error(f"{MAPPING}: {name}", show(value), " or ".join(kind.__name__ for kind in kinds), see)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            if name in ITEMS and not isinstance(item, ITEMS[name]):
                wanted = " or ".join(kind.__name__ for kind in ITEMS[name])
                raise place.error(f"{MAPPING}: {name}", f"{show(item)} in it", wanted, see)
    mapping = Mapping(**content)
    if mapping.image_size is not None and mapping.image_size < 1:
        raise place.error(f"{MAPPING}: image_size", f"{mapping.image_size}", "a side in pixels, or null", see)
    return mapping


def _camera(place, key, mapping, features):
    cameras = mapping.cameras or {}
    names = [cameras[key]] if key in cameras else [f"observation.images.{key}", f"observation.{key}"]
    pictures = [name for name, feature in features.items() if feature["dtype"] in ("video", "image")]
    for name in names:
        if name in pictures:
            return name
    raise place.error(
        f"camera {key!r}",
        f"the features {', '.join(pictures) or 'none with pictures'}",
        f"{names[0]}",
        f'pass --image_keys with what it has, or name it in {MAPPING}: {{"cameras": {{"{key}": "..."}}}}',
    )


def _stride(place, mapping, fps):
    """Frames per control step."""
    if mapping.control_hz is None:
        return 1
    stride = round(fps / mapping.control_hz) if mapping.control_hz > 0 else 0
    if stride < 1 or abs(stride * mapping.control_hz - fps) > 0.01 * fps:
        raise place.error(
            "control_hz",
            f"{mapping.control_hz:g}",
            f"a whole fraction of the {fps:g} frames per second",
            f"choose another in {MAPPING}",
        )
    if stride > 1 and mapping.combine not in COMBINE:
        raise place.error(
            "combine",
            f"{mapping.combine}",
            f"one of {', '.join(COMBINE)}: what becomes of {stride} actions",
            f"say in {MAPPING} mean for velocities, sum for steps, last for targets",
        )
    return stride


class _Rows:
    """The dataset's table without its pictures: actions, state, rewards by episode."""

    def __init__(self, place, root, mapping, features, setup_mode):
        self.place, self.mapping, self.remarks = place, mapping, []
        numeric = ("float", "int", "uint", "bool")
        self.names = [name for name, feature in features.items() if feature["dtype"].startswith(numeric)]
        states = mapping.state if mapping.state is not None else ["observation.state"]
        used = {mapping.action, *states, *READ, *PENALTIES}
        if {FINAL, MASK} <= set(self.names):  # one alone is another's, and means something else
            used |= {FINAL, MASK}
        names = [name for name in self.names if name in used]
        table = read_table(place, root, "data", names)
        self.columns = {name: self._numbers(table, name) for name in names}
        self.numbers = self._column("episode_index").ravel()  # (N,)
        tasks = len(np.unique(self.columns.get("task_index", ())))
        if tasks > 1:
            self.remarks.append(
                f"{place}: {tasks} tasks (task_index), read as one: nothing tells the policy which is meant"
            )
        self.action = self._action(features)  # (N, A)
        check_action_dim(place, self.action.shape[1], setup_mode)
        self.grippers = gripper_columns(self.action.shape[1], setup_mode)
        self.arm = [column for column in range(self.action.shape[1]) if column not in self.grippers]
        self.low, self.high = self._range()
        for column in self.grippers:
            self.action[:, column] = self._gripper(self.action[:, column])
        self.rewarded = self._rewarded()
        self.kind = self._kind()
        self.state = self._state(states if mapping.state is not None else [name for name in states if name in names])

    def _numbers(self, table, name):
        """A column as an array; an error names the first row that has nothing, or something of another shape."""
        if name not in table.column_names:
            raise self.place.error(
                name, f"the columns {', '.join(table.column_names)}", f"{name}, as {INFO} has it", AGAIN
            )
        values = table[name].to_pylist()
        try:
            array = np.array(values)
        except ValueError:  # ragged
            array = np.array(None)
        if array.dtype.kind in "biuf":
            return array
        odd = next((i for i, x in enumerate(values) if np.shape(x) != np.shape(values[0]) or x is None), 0)
        number = table["episode_index"][odd].as_py() if "episode_index" in table.column_names else "?"
        raise Place(self.place.path, odd).error(
            f"episode {number}: {name}", show(values[odd]), "numbers of one shape throughout", AGAIN
        )

    def _column(self, name):
        if name not in self.columns:
            raise self.place.error(
                name, f"the columns {', '.join(self.names)}", f"the column {name!r}", f"correct {MAPPING}"
            )
        return self.columns[name]

    def _state(self, names):
        if not names:
            return None
        return np.concatenate([self._column(n).reshape(len(self.action), -1) for n in names], 1).astype(np.float32)

    def _action(self, features):
        name, entries = self.mapping.action, self.mapping.entries
        action = self._column(name)
        action = action.reshape(len(action), -1).astype(np.float64)  # (N, A)
        if entries is None:
            return action
        names = entry_names(features[name].get("names"))
        try:
            return action[:, [names.index(e) if isinstance(e, str) else e for e in entries]]
        except (ValueError, IndexError, TypeError):
            wanted = f"entries among {names}" if any(names) else f"indices below {action.shape[1]}"
            raise self.place.error("entries", f"{entries}", wanted, f"correct {MAPPING}") from None

    def _range(self):
        """What of the arm's entries becomes -1 and 1, each (A - grippers,)."""
        count = len(self.arm)
        low, high = (
            np.array(default if x is None else x, float)
            for x, default in ((self.mapping.low, [-1] * count), (self.mapping.high, [1] * count))
        )
        if low.shape != (count,) or high.shape != (count,) or not (low < high).all():
            raise self.place.error(
                "low, high",
                f"{low.tolist()}, {high.tolist()}",
                f"{count} numbers each, low below high",
                f"correct {MAPPING}",
            )
        return low, high

    def _gripper(self, values):
        if not (finite := np.isfinite(values)).all():
            odd = int(np.argmin(finite))
            raise Place(self.place.path, odd).error("gripper", f"{values[odd]}", "a finite number", NOT_FINITE)
        kinds = self.mapping.gripper or {}
        numbers = all(isinstance(value, (int, float)) for value in kinds.values())
        if (
            numbers
            and len(set(kinds.values())) == len(kinds)
            and set(kinds) in ({"close", "hold", "open"}, {"close", "open"})
        ):
            meaning = {"close": -1.0, "hold": 0.0, "open": 1.0}
            commands, known = np.array([meaning[name] for name in kinds]), np.array(list(kinds.values()), float)
            nearest = np.abs(values[:, None] - known).argmin(1)  # (N,)
            far = np.abs(values - known[nearest]) > SNAP_DISTANCE * np.diff(np.sort(known)).min()
            if far.any():
                odd = int(np.argmax(far))
                raise Place(self.place.path, odd).error(
                    "gripper", f"{values[odd]:g}", f"one of {kinds}", f"correct {MAPPING}"
                )
            return commands[nearest]
        if numbers and set(kinds) == {"closed", "open"} and kinds["closed"] != kinds["open"]:
            is_open = (values - kinds["closed"]) / (kinds["open"] - kinds["closed"]) > 0.5
            commands = np.diff(is_open.astype(float), prepend=float(is_open[0]))
            starts = np.flatnonzero(np.diff(self._column("episode_index")) != 0) + 1
            commands[starts] = 0.0
            return commands
        raise self.place.error(
            "gripper",
            f"{kinds or 'no convention'}",
            "what closes and what opens it",
            f'write into {MAPPING} {{"gripper": {{"close": 0, "hold": 1, "open": 2}}}} with the values of this '
            'dataset, or for positions {"closed": 0, "open": 100}',
        )

    def episode(self, number: int, stride: int) -> tuple[list[dict], np.ndarray]:
        """Its transitions without pictures, and the rows (of the whole table) of their frames and the one after."""
        rows = np.flatnonzero(self.numbers == number)
        final = FINAL in self.columns and bool(self._column(FINAL)[rows[-1]])  # an observation without a step
        steps = rows[:-1] if final else rows
        if not len(steps):
            raise self.place.error(f"episode {number}", "one frame, marked final", "a step at least", AGAIN)
        rewards = self._rewards(steps)
        terminal = self._terminal(steps, rewards)
        if not final and not terminal:  # the last frame can only be what the step before it led to
            steps, final = steps[:-1], True
        if not len(steps):
            self.remarks.append(f"{self.place}: episode {number} has one frame and no step; it is left out")
            return [], rows[:0]
        parts = [steps[i : i + stride] for i in range(0, len(steps), stride)]
        kept = np.array([part[0] for part in parts])
        if final or kept[-1] != rows[-1]:  # the last frame stands for what the last step led to
            kept = np.append(kept, rows[-1])
        states = None if self.state is None else self.state[kept]
        transitions = []
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            obs, next_obs = ({} if states is None else {"state": states[min(j, len(kept) - 1)]} for j in (i, i + 1))
            transitions.append(
                {
                    "observations": obs,
                    "actions": self._action_of(part),
                    "next_observations": next_obs,
                    "dones": last,
                    "rewards": float(rewards[part - steps[0]].sum()),
                    "masks": float(not (last and terminal)),
                }
                | self._penalty(part)
            )
        return transitions, kept

    def _action_of(self, part):
        """The action float32 (A,) of a control step's rows: entries combined, the last gripper command that is none."""
        actions = self.action[part]  # (n, A)
        result = actions[0] if len(part) == 1 else COMBINE[self.mapping.combine](actions, axis=0)
        for column in self.grippers:
            moves = actions[actions[:, column] != 0, column]
            result[column] = moves[-1] if len(moves) else 0.0
        arm = result[self.arm]
        if self.mapping.low is not None or self.mapping.high is not None:
            result[self.arm] = 2 * (arm - self.low) / (self.high - self.low) - 1
        outside = np.abs(result[self.arm]) > 1 + ROUNDING
        if outside.any():
            i = int(np.argmax(outside))
            raise self.place.error(
                f"row {part[0]}: action, entry {self.arm[i]}",
                f"{arm[i]:.6g}",
                f"{self.low[i]:g} to {self.high[i]:g}",
                f"give low and high of one control step in {MAPPING}",
            )
        return result.astype(np.float32)

    def _rewarded(self):
        """The column of rewards, None without one; that of success where rewards were never written."""
        names = [name for name in ("next.reward", "next.success") if name in self.columns]
        if len(names) == 2 and not self.columns[names[0]].any() and self.columns[names[1]].any():
            self.remarks.append(f"{self.place}: next.reward is 0 throughout: next.success is read instead")
            return names[1]
        return names[0] if names else None

    def _kind(self):
        if self.rewarded is None:
            return None
        rewards = self.columns[self.rewarded].astype(np.float64).ravel()
        return reward_kind(rewards, np.append(np.diff(self.numbers) != 0, True))

    def _rewards(self, steps):
        if self.rewarded is not None:
            return self.columns[self.rewarded][steps].astype(np.float64).ravel()
        remark = f"{self.place}: no next.reward: every episode counts as a success at its end, reward 1"
        self.remarks += [remark] * (remark not in self.remarks)
        return (steps == steps[-1]).astype(np.float64)

    def _terminal(self, steps, rewards):
        """Whether the episode really ended; without this project's mask: whether its last step was rewarded.

        That is above what a step without success has in this dataset, -1 perhaps.
        """
        if MASK in self.columns:
            return not self.columns[MASK][steps[-1]]
        if self.kind is None:
            return bool(rewards[-1] > 0)
        if self.kind.shaped:
            return bool(rewards[-1] >= rewards.max() - SAME)
        return bool(rewards[-1] > self.kind.ordinary + SAME)

    def _penalty(self, part):
        names = [name for name in PENALTIES if name in self.columns]
        return {"grasp_penalty": float(self.columns[names[0]][part].sum())} if names else {}

"""Checks on the single values of a recorded transition, shared by demo and classifier files.

Every error is one line: file: transition i: key: got X, wanted Y; what to do.
"""

import reprlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pytorch_serl.data.episode_files import is_episode_file, read_episode
from pytorch_serl.data.safe_pickle import safe_load_all

SHORT = reprlib.Repr()  # of nested values a few: a file of 100 bytes can name one that is terabytes when written out
SHORT.maxlevel = 2
NOT_FINITE = "find its source and leave that episode out"
ROUNDING = 1e-5  # actions this far outside [-1, 1] are clipped, not refused
LARGEST = float(np.finfo(np.float32).max)  # what a buffer can hold


class DataError(ValueError):
    """A recorded file is wrong; the message names file, transition and key, and what to do."""


@dataclass(frozen=True)
class Place:
    """Where in a file a value was found: transition `first`, or transitions `first` to `last`."""

    path: str
    first: int | None = None
    last: int | None = None

    def __str__(self):
        if self.first is None:
            return self.path
        if self.last is None:
            return f"{self.path}: transition {self.first}"
        return f"{self.path}: transitions {self.first}-{self.last}"

    def error(self, key, got, wanted, remedy):
        return DataError(f"{self}: {key}: got {got}, wanted {wanted}; {remedy}")


def show(value):
    """A value in a few words, for a message."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    if value is None:
        return "None"
    text = (
        ascii(value[:40]) if isinstance(value, str) else SHORT.repr(value).encode("ascii", "backslashreplace").decode()
    )
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def show_keys(mapping):
    return "keys " + ", ".join(sorted(show_key(key) for key in mapping)) if mapping else "no keys"


def show_key(key):
    return ascii(key) if isinstance(key, (str, bytes)) else show(key)


def load_transitions(path):
    """Return the list of dicts that `path` holds: a pickle, several lists one after the other, or an episode file.

    Raises DataError (no such file, no list, empty, an item that is no dict), ValueError or UnsafePickleError.
    """
    place = Place(str(path))
    if not Path(path).is_file():
        got = "a folder" if Path(path).is_dir() else "no such file"
        raise place.error("file", got, "a pickle file with a list of transitions", "check the path")
    if is_episode_file(path):
        return read_episode(path)
    transitions = _one_list(place, safe_load_all(path))
    if not transitions:
        raise place.error("file", "an empty list", "at least one transition", "record it again or leave it out")
    for index, transition in enumerate(transitions):
        if not isinstance(transition, dict):
            raise Place(str(path), index).error(
                "transition", show(transition), "a dict with 'observations'", "save each transition as a dict"
            )
    return transitions


def _one_list(place, values):
    """The lists of a file's pickles as one; several times pickle.dump into one file writes several."""
    for number, value in enumerate(values, 1):
        if not isinstance(value, list):
            several = f"{len(values)} pickles one after the other, of which no. {number} is a " * (len(values) > 1)
            raise place.error("file", several + show(value), "a list of transitions", "save one list per file")
    return values[0] if len(values) == 1 else [item for value in values for item in value]


def take(place, transition, key):
    """Return transition[key], or raise an error that lists the keys present."""
    if key not in transition:
        raise place.error(key, show_keys(transition), f"the key {key!r}", "record it or rename its key")
    return transition[key]


def read_observation(place, key, transition, image_keys, has_state):
    """Return {image key: uint8 (H, W, 3), ..., 'state': float32 (D,)} from transition[key].

    Image keys that were not asked for are dropped; `state` is read where `has_state`.
    """
    observation = take(place, transition, key)
    if not isinstance(observation, dict):
        raise place.error(key, show(observation), "a dict of images and state", "save observations as a dict")
    result = {}
    for name in image_keys:
        if name not in observation:
            raise place.error(
                f"{key}[{name!r}]",
                show_keys(observation),
                f"the image key {name!r}",
                "pass --image_keys with keys that the file has",
            )
        result[name] = read_image(place, f"{key}[{name!r}]", observation[name])
    if has_state:
        if "state" not in observation:
            raise place.error(
                f"{key}['state']",
                show_keys(observation),
                "'state', which the first observation has",
                "record it throughout or leave it out throughout",
            )
        state_key = f"{key}['state']"
        result["state"] = read_vector(place, state_key, unstack(place, state_key, observation["state"], 2))
    return result


def unstack(place, key, value, stacked_ndim):
    """Remove HIL-SERL's leading stacking axis (T, ...), which must have length 1."""
    if not isinstance(value, np.ndarray) or value.ndim != stacked_ndim:
        return value
    if value.shape[0] != 1:
        raise place.error(
            key,
            f"shape {value.shape}",
            "one frame, not a stack of them",
            "stacked frames are not supported: record with obs_horizon 1 or keep the last frame",
        )
    return value[0]


def read_image(place, key, value):
    """Return the image as uint8 (H, W, 3); (1, H, W, 3) is unstacked."""
    value = unstack(place, key, value, 4)
    wanted = "uint8 (H, W, 3) in 0..255"
    if not isinstance(value, np.ndarray):
        raise place.error(key, show(value), wanted, "save images as numpy arrays")
    if value.dtype != np.uint8:
        raise place.error(key, _show_range(value), wanted, _image_remedy(value))
    if value.ndim != 3 or value.shape[2] != 3 or 0 in value.shape:
        raise place.error(key, f"shape {value.shape}", wanted, _shape_remedy(value.shape))
    return np.ascontiguousarray(value)


def _show_range(value):
    if value.size == 0 or value.dtype.kind not in "iuf":
        return show(value)
    return f"{show(value)} in [{value.min():.4g}, {value.max():.4g}]"


def _image_remedy(value):
    if value.dtype.kind == "f" and value.size and value.min() >= 0 and value.max() <= 1:
        return "save (image * 255).round().astype(np.uint8)"
    if value.dtype.kind in "iuf" and value.size and value.min() >= 0 and value.max() <= 255:
        return "save image.astype(np.uint8)"
    return "save the camera's own uint8 image, not a normalised one"


def _shape_remedy(shape):
    if 0 in shape:
        return "the camera gave no picture: leave that episode out, or record it again"
    if len(shape) == 3 and shape[0] == 3:
        return "the image is channel-first: save image.transpose(1, 2, 0)"
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        return "the encoder takes colour: repeat a grey image three times along a last axis"
    if len(shape) == 3 and shape[2] == 4:
        return "drop the fourth channel with image[..., :3]"
    if len(shape) == 3 and shape[2] % 3 == 0 and shape[2]:
        return "stacked frames are not supported: keep the last three channels"
    return "save one colour image per key"


def read_vector(place, key, value):
    """Return a finite float32 (D,) vector."""
    wanted = "a float vector (D,)"
    if not isinstance(value, np.ndarray):
        raise place.error(key, show(value), wanted, "save it as one flat numpy array")
    if value.dtype.kind not in "iuf":
        raise place.error(key, show(value), wanted, "save it as float32")
    if value.ndim != 1 or value.size == 0:
        raise place.error(key, f"shape {value.shape}", wanted, "save it as one flat, non-empty vector")
    with np.errstate(over="ignore"):
        vector = value.astype(np.float32)
    finite = np.isfinite(vector)
    if not finite.all():
        entry = int(np.argmin(finite))
        raise place.error(f"{key}[{entry}]", f"{value[entry]}", "a finite number", NOT_FINITE)
    return vector


def read_number(place, key, value):
    """Return a finite float from a Python or numpy number, or from an array of one."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if not isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        raise place.error(key, show(value), "one number", "save it as a float")
    try:
        number = float(value)
    except OverflowError:  # an int beyond any float
        number = np.inf
    if not abs(number) <= LARGEST:
        raise place.error(key, show(value), "a finite number", NOT_FINITE)
    return number


def read_flag(place, key, value, remedy="save it as a bool"):
    """Return a bool from True, False, 0 or 1 of any number type."""
    number = read_number(place, key, value)
    if number not in (0.0, 1.0):
        raise place.error(key, f"{number:g}", "0 or 1", remedy)
    return number == 1.0


def read_action(place, value):
    """Return the action as float32 (A,) in [-1, 1]; what rounding put outside is clipped."""
    if isinstance(value, (list, tuple)):
        raise place.error("actions", show(value), "a float array (A,)", "save np.asarray(action, np.float32)")
    action = read_vector(place, "actions", value)
    outside = np.abs(action) > 1 + ROUNDING
    if outside.any():
        entry = int(np.argmax(outside))
        raise place.error(
            f"actions[{entry}]",
            f"{action[entry]:.6g}",
            "a value in [-1, 1]",
            "record the normalised action, a gripper as -1 close, 0 hold, 1 open",
        )
    return action.clip(-1, 1)


def read_penalty(place, item):
    """Return item['grasp_penalty'], or the one in its infos: 0 or negative, or None where there is none."""
    key, value = "grasp_penalty", item.get("grasp_penalty")
    infos = item.get("infos")
    if value is None and isinstance(infos, dict):
        key, value = "infos['grasp_penalty']", infos.get("grasp_penalty")
    if value is None:
        return None
    penalty = read_number(place, key, value)
    if penalty > 0:
        raise place.error(
            key, f"{penalty:g}", "0 or negative: it is added to the reward", "flip its sign (HIL-SERL: -0.02)"
        )
    return penalty

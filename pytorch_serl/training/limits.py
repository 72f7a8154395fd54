"""The limits of a demo file for what a running environment gives: checked before it is stored, sent or learned from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from pytorch_serl.data.actions import nearest_commands
from pytorch_serl.data.checks import (
    NOT_FINITE,
    DataError,
    Place,
    read_flag,
    read_number,
    read_observation,
    read_penalty,
    show,
    show_keys,
)
from pytorch_serl.data.demos import read_transition
from pytorch_serl.training.rewards import ContractError, check_sparse, executed_action

# of a step's info, to be recorded; `succeed` is what counted
VERDICTS = ("succeed", "env_verdict", "success_probability", "classifier_verdict", "human_verdict")


@dataclass(frozen=True)
class Moment(Place):
    """Where in a run the environment gave a value: `path` is the episode in words, `first` its step; None at reset."""

    def __str__(self):
        return f"the environment in {self.path}, " + ("at its reset" if self.first is None else f"step {self.first}")

    def error(self, key, got, wanted, remedy):
        remedy = "find its source" if remedy is NOT_FINITE else remedy.replace("save", "give")  # those of files
        return ContractError(f"{self}: {key}: got {got}, wanted {wanted}; {remedy}")


@dataclass(frozen=True)
class Limits:
    """What fits an agent and its buffers.

    image_shapes: by camera. state_dim: 0 where the agent reads no state. grippers: entries of the action that are
    gripper commands. sparse: refuse rewards that the critics' clipped targets exclude (`check_sparse`).
    """

    image_shapes: dict[str, tuple[int, ...]]
    state_dim: int
    action_dim: int
    grippers: tuple[int, ...] = ()
    sparse: bool = False

    def observation(self, place: Place, key: str, obs: Any) -> None:
        """Raise `place.error` for an observation that lacks something or has other shapes, dtypes or NaN."""
        wanted = [*self.image_shapes, *["state"] * bool(self.state_dim)]
        if not isinstance(obs, dict) or any(name not in obs for name in wanted):
            got = show_keys(obs) if isinstance(obs, dict) else show(obs)
            raise place.error(key, got, f"a dict with {', '.join(wanted)}", "give every camera and the state each time")
        arrays = {name: np.asarray(obs[name]) for name in wanted}
        read_observation(place, key, {key: arrays}, list(self.image_shapes), bool(self.state_dim))
        shapes = self.image_shapes | {"state": (self.state_dim,)}
        for name, array in arrays.items():
            if array.shape != tuple(shapes[name]):
                self._other_shape(place, f"{key}[{name!r}]", array.shape, shapes[name])

    def outcome(self, place: Place, result: tuple) -> tuple[float, bool, bool, dict[str, float]]:
        """Check what `env.step` returned; the reward, `terminated`, `truncated` and the verdicts as plain numbers."""
        next_obs, reward, terminated, truncated, info = result
        self.observation(place, "observation", next_obs)
        reward = read_number(place, "reward", _value(reward))
        terminated, truncated = (
            read_flag(place, name, _value(flag))
            for name, flag in (("terminated", terminated), ("truncated", truncated))
        )
        verdicts = {}
        for name in VERDICTS:
            if name in info:
                read = read_number if name == "success_probability" else read_flag
                verdicts[name] = float(read(place, f"info[{name!r}]", _value(info[name])))
        return reward, terminated, truncated, verdicts

    def step(self, place: Place, action: np.ndarray, result: tuple) -> tuple[dict[str, Any], dict[str, float]]:
        """A step's plain values as a transition has them, and its verdicts. Raises ContractError, naming the place."""
        reward, terminated, truncated, verdicts = self.outcome(place, result)
        info = result[-1]
        try:
            if self.sparse:
                check_sparse(reward, terminated)
            executed = executed_action(info, action, self.grippers)
        except ContractError as error:
            raise ContractError(f"{place}: {error}") from None
        penalty = read_penalty(place, {"grasp_penalty": _value(info.get("grasp_penalty"))})
        return {
            "actions": executed,
            "rewards": reward,
            "masks": 1.0 - float(terminated),
            "dones": terminated or truncated,
            "grasp_penalty": penalty or 0.0,
        }, verdicts

    def recorded(self, path: Path, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The steps of an episode file (`read_episode`) without those that are beyond the limits; says how many."""
        kept, errors = [], []
        for index, step in enumerate(steps):
            try:
                self.recorded_step(Place(str(path), index), step)
                kept.append(step)
            except DataError as error:
                errors.append(error)
        if errors:
            tqdm.write(f"{len(errors)} of the {len(steps)} steps recorded in {path} are left out: {errors[0]}")
        if kept and not kept[-1]["dones"]:
            kept[-1] = kept[-1] | {"dones": True}  # as if cut off by a time limit
        return kept

    def recorded_step(self, place: Place, step: dict[str, Any]) -> None:
        """Raise DataError for a recorded transition that is beyond the limits."""
        read = read_transition(place, step, list(self.image_shapes), bool(self.state_dim), has_masks=True)
        for key in ("observations", "next_observations"):
            self.observation(place, key, step[key])
        if read["actions"].shape != (self.action_dim,):
            self._other_shape(place, "actions", read["actions"].shape, (self.action_dim,))
        commands = read["actions"][list(self.grippers)]
        if nearest_commands(commands)[1].any():
            raise place.error("actions", f"gripper entries {commands}", "-1, 0 or 1", "leave that step out")

    def _other_shape(self, place, key, got, wanted):
        raise place.error(key, f"shape {got}", f"{tuple(wanted)}", "give the same camera and state setting throughout")


def limits_of(agent: Any, env: gym.Env, sparse: bool = False) -> Limits:
    """The limits for an agent in an environment whose spaces fit it; the cameras' shapes are the spaces'."""
    spaces = getattr(getattr(env, "observation_space", None), "spaces", {})
    shapes = {key: spaces[key].shape for key in getattr(agent, "image_keys", ()) if key in spaces}
    return limits_for(agent, shapes, sparse)


def limits_for(agent: Any, image_shapes: dict[str, tuple[int, ...]], sparse: bool = False) -> Limits:
    """The limits for an agent and these cameras' shapes."""
    count = getattr(agent, "num_grippers", 0)
    size = getattr(agent, "action_dim", 0) + count
    block = size // max(1, count)
    grippers = tuple(block * (arm + 1) - 1 for arm in range(count))
    return Limits(dict(image_shapes), getattr(agent, "state_dim", 0), size, grippers, sparse)


def _value(value: Any) -> Any:
    """A number, or what holds one (a tensor, say), as numpy has it."""
    return np.asarray(value) if hasattr(value, "__array__") and not isinstance(value, np.generic) else value

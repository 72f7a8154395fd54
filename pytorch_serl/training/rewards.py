"""What a step gave: success by the environment or by a classifier, rewards and corrections that keep the contract."""

import re
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from pytorch_serl.data.actions import nearest_commands
from pytorch_serl.data.checks import ROUNDING
from pytorch_serl.networks.classifier import RewardClassifier


class ContractError(ValueError):
    """The environment did what the contract with it excludes, which nobody can see before it does."""


def succeeded(info: dict[str, Any]) -> bool:
    """`info["succeed"]` of the last step. Raises ContractError when the environment does not report it."""
    if "succeed" not in info:
        raise ContractError(
            f"the environment's info has {sorted(map(str, info))} at the end of an episode; wanted 'succeed' (bool), "
            "or give a classifier (--reward classifier --classifier_ckpt ...)"
        )
    return bool(info["succeed"])


def check_sparse(reward: float, terminated: bool) -> None:
    """Raise ContractError for a reward that is neither 0 nor 1 at a success that ends the episode.

    For demos that know no other: the critics' targets are clipped to what these rewards allow.
    """
    if reward != 0.0 and not (reward == 1.0 and terminated):
        raise ContractError(
            f"the environment gave the reward {reward} (terminated {terminated}), but in the demos the only reward "
            "is 1.0 at a success that ends the episode; record demos with the environment's own rewards"
        )


def executed_action(info: dict[str, Any], action: np.ndarray, grippers: Sequence[int] = ()) -> np.ndarray:
    """The human's action where there is one, by the limits of a demo file's.

    What rounding puts outside [-1, 1] is clipped; the entries `grippers` become the command that they are near to.
    Raises ContractError for a human's action of another shape than the policy's, outside [-1, 1], or NaN, and for a
    gripper entry that is no command.
    """
    try:
        human = np.asarray(info.get("intervene_action", action))
    except ValueError:  # lists of several lengths
        human = np.asarray(None)
    numbers = human.shape == action.shape and human.dtype.kind in "iuf" and (np.abs(human) <= 1 + ROUNDING).all()
    if not numbers:
        whose = "info['intervene_action']" if "intervene_action" in info else "the expert's action"
        raise ContractError(f"{whose} is {human}; wanted {action.shape} numbers in [-1, 1]")
    human = human.astype(np.float32).clip(-1, 1)
    commands, far = nearest_commands(human[list(grippers)])
    if far.any():
        entry = grippers[int(np.argmax(far))]
        raise ContractError(
            f"info['intervene_action'][{entry}] is {human[entry]:.4g}; wanted a gripper command, -1 close, 0 hold or "
            "1 open"
        )
    human[list(grippers)] = commands
    return human


class ClassifierReward(gym.Wrapper):
    """Success as the classifier sees it: it gives the reward, 0 or 1, and ends the episode.

    The environment may still end an episode, by termination or time limit, without a reward. Where it has no verdict
    of its own, `info["succeed"]` is the classifier's. The verdicts stay apart: `info["success_probability"]` of this
    frame, `info["classifier_verdict"]` (0 or 1), `info["env_verdict"]` where there is one.

    Args:
        env: with the classifier's cameras among its observations, in the sizes of its training.
        classifier: in eval mode.
        frames: so many in a row have to look like success.
        conditions: of the state in each of them, as `state_conditions` returns them.
    Raises ValueError for cameras or a state that do not fit.
    """

    def __init__(
        self,
        env: gym.Env,
        classifier: RewardClassifier,
        frames: int = 1,
        conditions: list[tuple[int, str, float]] | None = None,
    ):
        super().__init__(env)
        self.classifier, self.frames, self.conditions = classifier, frames, conditions or []
        spaces = getattr(env.observation_space, "spaces", {})
        missing = [key for key in classifier.image_keys if key not in spaces]
        if missing:
            raise ValueError(f"--classifier_ckpt looks at {missing}, the environment has {sorted(spaces)}")
        for key, seen in classifier.image_shapes.items():
            if tuple(spaces[key].shape[:2]) != tuple(seen):
                raise ValueError(
                    f"camera {key!r} is {spaces[key].shape}, the classifier was trained on {tuple(seen)} (H, W): its "
                    "verdict on other frames means nothing; crop and resize as in its training"
                )
        size = spaces["state"].shape[0] if "state" in spaces else 0
        beyond = [index for index, _, _ in self.conditions if index >= size]
        if beyond:
            raise ValueError(f"--success_state names the entries {beyond}, the environment's state has {size}")

    def reset(self, **options):
        self.in_a_row = 0
        return self.env.reset(**options)

    def step(self, action):
        obs, _, terminated, truncated, info = self.env.step(action)
        try:
            probability, positive = self.classifier.predict_success(obs)
            positive = positive and all(
                obs["state"][index] > value if sign == ">" else obs["state"][index] < value
                for index, sign, value in self.conditions
            )
        except (ValueError, LookupError, TypeError) as error:  # what `Limits` would refuse comes here first
            raise ContractError(f"the environment's observation cannot be judged: {error}") from None
        self.in_a_row = self.in_a_row + 1 if positive else 0
        success = self.in_a_row >= self.frames
        if "succeed" in info:
            info = info | {"env_verdict": info["succeed"]}
        verdicts = {"success_probability": probability, "classifier_verdict": float(success)}
        return obs, float(success), terminated or success, truncated, {"succeed": success} | info | verdicts


def state_conditions(words: list[str]) -> list[tuple[int, str, float]]:
    """(entry, "<" or ">", value) of words like "2>0.04". Raises ValueError for any other."""
    conditions = []
    for word in words:
        parts = re.fullmatch(r"(\d+)([<>])([-+.\de]+)", word)
        try:
            conditions.append((int(parts[1]), parts[2], float(parts[3])))
        except (TypeError, ValueError):
            raise ValueError(f"{word!r} is no condition; wanted entry of the state, < or >, value: '2>0.04'") from None
    return conditions

"""What a step gave: success by the environment or by a classifier, rewards and corrections that keep the contract."""

from typing import Any

import gymnasium as gym
import numpy as np

from pytorch_serl.data.demos import ROUNDING
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


def executed_action(info: dict[str, Any], action: np.ndarray) -> np.ndarray:
    """The human's action where there is one; what rounding puts outside [-1, 1] is clipped, as in demo files.

    Raises ContractError for a human's action of another shape than the policy's, outside [-1, 1], or NaN.
    """
    human = np.asarray(info.get("intervene_action", action), np.float32)
    if human.shape != action.shape or not (np.abs(human) <= 1 + ROUNDING).all():
        raise ContractError(f"info['intervene_action'] is {human}; wanted {action.shape} numbers in [-1, 1]")
    return human.clip(-1, 1)


class ClassifierReward(gym.Wrapper):
    """Success as the classifier sees it: it gives the reward, 0 or 1, and ends the episode.

    The environment may still end an episode, by termination or time limit, without a reward. Where it has no verdict
    of its own, `info["succeed"]` is the classifier's; `info["success_probability"]` always is.

    Args:
        env: with the classifier's cameras among its observations; raises ValueError without.
        classifier: in eval mode.
    """

    def __init__(self, env: gym.Env, classifier: RewardClassifier):
        super().__init__(env)
        self.classifier = classifier
        cameras = sorted(getattr(env.observation_space, "spaces", {}))
        missing = [key for key in classifier.image_keys if key not in cameras]
        if missing:
            raise ValueError(f"--classifier_ckpt looks at {missing}, the environment has {cameras}")

    def step(self, action):
        obs, _, terminated, truncated, info = self.env.step(action)
        probability, success = self.classifier.predict_success(obs)
        info = {"succeed": success} | info | {"success_probability": probability}
        return obs, float(success), terminated or success, truncated, info

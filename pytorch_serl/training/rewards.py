"""Where success comes from in training: the environment's own verdict, or a reward classifier's."""

from typing import Any

import gymnasium as gym

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

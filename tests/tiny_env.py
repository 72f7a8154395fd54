"""An environment of noise for tests of train_hybrid.py: `--env tests.tiny_env:Tiny-v0`."""

import hashlib
import os
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

from pytorch_serl.training.evaluate import EVAL_SEED

LENGTH = 6  # steps of an episode
HUMAN_STEPS = (2, 3)


class TinyEnv(gym.Env):
    """Noise as pictures; success at the last step of every second episode, a time limit in the others.

    With `human` somebody takes over in HUMAN_STEPS.
    """

    human_action = np.full(6, 0.5, np.float32)

    def __init__(self, human=False, report_success=True, reward=1.0, high=1.0):
        self.human, self.report_success, self.reward = human, report_success, reward
        image = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        state = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = gym.spaces.Dict({"image": image, "state": state})
        self.action_space = gym.spaces.Box(-1, high, (6,), np.float32)
        self.executed = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.solvable = 0, seed % 2 == 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        info = {"succeed": False, "grasp_penalty": 0.0}
        if self.human and self.steps in HUMAN_STEPS:
            action = info["intervene_action"] = self.human_action
        self.executed.append(action)
        last = self.steps == LENGTH
        solved = info["succeed"] = last and self.solvable
        if not self.report_success:
            del info["succeed"]
        return self._observe(), self.reward * solved, solved, last and not solved, info

    def _observe(self):
        image = self.np_random.integers(0, 256, (32, 32, 3), np.uint8)
        return {"image": image, "state": self.np_random.normal(size=3).astype(np.float32)}


class TinySteps(TinyEnv):
    """Takes one of three commands for each entry of an action."""

    def __init__(self):
        super().__init__()
        self.action_space = gym.spaces.MultiDiscrete([3] * 6)


class TinyDual(TinyEnv):
    setup_mode = "dual-arm-fixed-gripper"


class TinyWatched(TinyEnv):
    """Keeps 100 Hz; the folder TINY_WATCHED gets what tells each finished training episode from any other."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.np_random = np.random.default_rng()
        self.watched = seed < EVAL_SEED
        return self._observe(), {}

    def step(self, action):
        time.sleep(0.01)
        obs, reward, terminated, truncated, info = super().step(action)
        if self.watched and (terminated or truncated):
            (Path(os.environ["TINY_WATCHED"]) / fingerprint(obs)).touch()
        return obs, reward, terminated, truncated, info


def fingerprint(obs):
    return hashlib.sha256(obs["image"].tobytes()).hexdigest()


gym.register("Tiny-v0", TinyEnv)
gym.register("TinyHuman-v0", TinyEnv, kwargs={"human": True})
gym.register("TinySilent-v0", TinyEnv, kwargs={"report_success": False})
gym.register("TinyGenerous-v0", TinyEnv, kwargs={"reward": 5.0})
gym.register("TinyWide-v0", TinyEnv, kwargs={"high": 2.0})
gym.register("TinySteps-v0", TinySteps)
gym.register("TinyDual-v0", TinyDual)
gym.register("TinyBroken-v0", TinyEnv, kwargs={"arms": 3})
gym.register("TinyWatched-v0", TinyWatched, kwargs={"human": True})

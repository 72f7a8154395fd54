"""Environments that misbehave as robots do: `--env tests.robot_env:NAME`; what they lived through is in `LOG`."""

import time

import gymnasium as gym
import numpy as np

from tests.tiny_env import TinyEnv

LOG = []  # ("reset" | "step" | "close", the environment's number, time, the action as it came)


class Logged(TinyEnv):
    """Notes every call; `ends` False: no episode ends. Subclasses misbehave."""

    made = 0

    def __init__(self, ends=True, **options):
        super().__init__(**options)
        Logged.made += 1
        self.number, self.ends = Logged.made, ends

    def note(self, what, action=None):
        LOG.append((what, self.number, time.monotonic(), None if action is None else np.array(action)))

    def reset(self, *, seed=None, options=None):
        self.note("reset")
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.note("step", action)
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward * self.ends, terminated and self.ends, truncated and self.ends, info

    def close(self):
        self.note("close")


class Scaling(Logged):
    """Scales the very array that it gets, and gives the same arrays in each step."""

    def step(self, action):
        obs, *rest = super().step(action)
        action[:3] *= 0.02
        self.same = getattr(self, "same", obs)
        for key in obs:
            self.same[key][...] = obs[key]
        return self.same, *rest


class Camera(Logged):
    """After `after` steps (over all episodes) the camera does what `fault` says."""

    def __init__(self, fault, after=8, **options):
        super().__init__(**options)
        self.fault, self.after, self.count = fault, after, 0
        spaces = dict(self.observation_space.spaces)
        self.observation_space = gym.spaces.Dict(spaces | {"side": spaces["image"]})

    def step(self, action):
        self.count += 1
        return super().step(action)

    def _observe(self):
        obs = super()._observe()
        obs["side"] = self.np_random.integers(0, 256, (32, 32, 3), np.uint8)
        if self.count < self.after:
            self.frozen = obs["image"]
            return obs
        if self.fault == "raises":
            raise RuntimeError("no frame within 1 s")
        changed = {
            "frozen": lambda image: self.frozen,
            "black": np.zeros_like,
            "grey": lambda image: np.full_like(image, 127) + self.np_random.integers(0, 3, image.shape, np.uint8),
            "size": lambda image: image[:16],
            "float": lambda image: image / 255,
        }[self.fault](obs["image"])
        return obs | {"image": changed}


class BadClose(Logged):
    def close(self):
        super().close()
        raise RuntimeError("the driver is gone already")


class OldReset(Logged):
    def reset(self):
        return super().reset(seed=0)[0]


class OldStep(Logged):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


def register(name, kind, steps=None, **options):
    gym.register(f"{name}-v0", kind, kwargs=options, max_episode_steps=steps)


register("Logged", Logged, 50)
register("Endless", Logged, ends=False)
register("Long", Logged, 1000, ends=False)
register("Scaling", Scaling, 50)
register("ScalingHuman", Scaling, 50, human=True)
for fault in ("frozen", "black", "grey", "size", "float", "raises"):
    register(f"Camera_{fault}", Camera, 50, fault=fault)
register("BadClose", BadClose, 50)
register("BadCloseCamera", type("BadCloseCamera", (Camera, BadClose), {}), 50, fault="raises")
register("OldReset", OldReset)
register("OldStep", OldStep)
register("Silent", Logged, 50, report_success=False)

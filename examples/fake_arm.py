"""A complete environment of one's own: a made-up arm with two cameras and a driver that keeps 10 Hz.

    python examples/fake_arm.py --output ./data/fake_arm.pkl                 (20 demos, 1 minute)
    python train_hybrid.py --env examples.fake_arm:FakeArm-v0 --demo_paths ./data/fake_arm.pkl \\
        --image_keys front wrist --setup_mode single-arm-fixed-gripper --save_dir ./fake_arm_ckpt

The task: touch the red button, whose place on the table changes with every episode. Put your robot where `Driver` is:
the rest of the file is what train_hybrid.py needs to know of it.
"""

import argparse
import pickle
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

HZ = 10
LARGEST_STEP = 0.03  # m per step at a command of 1
WORKSPACE = np.array([[-0.15, -0.15, 0.0], [0.15, 0.15, 0.2]])  # m: commands cannot leave this box
TOUCH = 0.02  # m
SIZE = 128  # pixels


class Driver:
    """Stands for the robot's and the cameras' own software; replace it.

    Args:
        hz: how often a command may come; 0 does not wait, for tests.
    """

    def __init__(self, hz: float = HZ):
        self.period = 1.0 / hz if hz else 0.0
        self.due = time.monotonic()
        self.position, self.button = np.zeros(3), np.zeros(2)

    def home(self, rng: np.random.Generator) -> None:
        """Drive to the start; somebody puts the button elsewhere meanwhile."""
        self.position = np.array([*rng.uniform(-0.05, 0.05, 2), 0.15])
        self.button = rng.uniform(-0.1, 0.1, 2)
        self.due = time.monotonic() + self.period

    def move(self, step: np.ndarray) -> None:
        """Move by (3,) metres; returns when the next command is due, as a controller of fixed rate does."""
        self.position = np.clip(self.position + step, *WORKSPACE)
        time.sleep(max(0.0, self.due - time.monotonic()))
        self.due = max(self.due, time.monotonic()) + self.period

    def touched(self) -> bool:
        """What a sensor in the button says."""
        return bool(np.linalg.norm(self.position - [*self.button, 0.0]) < TOUCH)

    def picture(self, centre: np.ndarray, width: float) -> np.ndarray:
        """uint8 (SIZE, SIZE, 3): the table around `centre` (2,) m, `width` m wide, with button and hand."""
        axis = (np.arange(SIZE) / SIZE - 0.5) * width
        x, y = np.meshgrid(axis + centre[0], axis + centre[1], indexing="ij")
        image = np.full((SIZE, SIZE, 3), (180, 170, 150), np.uint8)
        image[np.hypot(x - self.button[0], y - self.button[1]) < 0.018] = (200, 30, 30)
        height = self.position[2]  # a high hand looks large
        image[np.hypot(x - self.position[0], y - self.position[1]) < 0.008 + 0.06 * height] = (40, 60, 160)
        return image


class FakeArm(gym.Env):
    """Observation: cameras `front` and `wrist`, `state` = position (3,) in m. Action: (6,) twist in [-1, 1]."""

    def __init__(self, hz: float = HZ):
        camera = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        state = gym.spaces.Box(-1, 1, (3,), np.float32)
        self.observation_space = gym.spaces.Dict({"front": camera, "wrist": camera, "state": state})
        self.action_space = gym.spaces.Box(-1, 1, (6,), np.float32)
        self.driver = Driver(hz)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.driver.home(self.np_random)
        return self._observe(), {"succeed": False}

    def step(self, action):
        self.driver.move(LARGEST_STEP * np.asarray(action, np.float64)[:3])  # this arm cannot turn
        succeed = self.driver.touched()
        return self._observe(), float(succeed), succeed, False, {"succeed": succeed}

    def close(self):
        pass  # stop the arm, release the cameras

    def _observe(self):
        front, wrist = self.driver.picture(np.zeros(2), 0.3), self.driver.picture(self.driver.position[:2], 0.1)
        return {"front": front, "wrist": wrist, "state": self.driver.position.astype(np.float32)}


if "FakeArm-v0" not in gym.registry:  # also when this file runs as a script
    gym.register("FakeArm-v0", entry_point="examples.fake_arm:FakeArm", max_episode_steps=40)


def teleoperate(env: gym.Env, rng: np.random.Generator) -> np.ndarray:
    """What a person with a space mouse would command: over the button first, then down. On your robot: your device."""
    driver = env.unwrapped.driver
    sideways = driver.button - driver.position[:2]
    down = -driver.position[2] if np.linalg.norm(sideways) < 0.01 else 0.0
    move = np.clip(np.array([*sideways, down]) / LARGEST_STEP, -0.8, 0.8) + rng.normal(0, 0.05, 3)
    return np.array([*move, 0.0, 0.0, 0.0], np.float32)


def record(path: Path, episodes: int, seed: int = 0, hz: float = HZ) -> None:
    """Write successful episodes in the demo format."""
    env, rng, transitions = gym.make("FakeArm-v0", hz=hz), np.random.default_rng(seed), []
    while episodes:
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        episode, done = [], False
        while not done:
            action = teleoperate(env, rng)
            next_obs, reward, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            episode.append(
                {
                    "observations": obs,
                    "actions": action,
                    "next_observations": next_obs,
                    "rewards": reward,
                    "dones": done,
                    "masks": 1.0 - terminated,
                }
            )
            obs = next_obs
        if info["succeed"]:
            transitions += episode
            episodes -= 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(transitions))
    print(f"wrote {len(transitions)} transitions to {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("./data/fake_arm.pkl"))
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the entry point
    record(options.output, options.episodes)

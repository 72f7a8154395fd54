"""A complete environment of one's own: a made-up arm with two cameras and a driver that keeps 10 Hz.

    python record_demos.py --env examples.fake_arm:FakeArm-v0 --setup_mode single-arm-fixed-gripper \\
        --human scripted --num_demos 20 --output_dir ./fake_arm_data         (in place of your device)
    python train_hybrid.py --env examples.fake_arm:FakeArm-v0 --demo_paths ./fake_arm_data/demos.pkl \\
        --image_keys front wrist --setup_mode single-arm-fixed-gripper --save_dir ./fake_arm_ckpt

The task: touch the red button, whose place on the table changes with every episode. Put your robot where `Driver` is:
the rest of the file is what train_hybrid.py needs to know of it.
"""

import time

import gymnasium as gym
import numpy as np

HZ = 10
LARGEST_STEP = 0.03  # m per step at a command of 1
WORKSPACE = np.array([[-0.15, -0.15, 0.0], [0.15, 0.15, 0.2]])  # m: commands cannot leave this box
TOUCH = 0.02  # m
ABOVE = 0.01  # m, sideways of the button, from where the expert goes down
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

    def scripted_expert(self, noise=0.05, seed=None):
        """Somebody with a space mouse, for recordings and corrections by script; your robot needs none."""
        return Expert(self, noise, seed)

    def _observe(self):
        front, wrist = self.driver.picture(np.zeros(2), 0.3), self.driver.picture(self.driver.position[:2], 0.1)
        return {"front": front, "wrist": wrist, "state": self.driver.position.astype(np.float32)}


class Expert:
    """What a person would command: over the button first, then down. It has no memory, so it can take over anywhere."""

    def __init__(self, env: FakeArm, noise: float, seed):
        self.driver, self.noise, self.rng = env.driver, noise, np.random.default_rng(seed)

    def act(self) -> np.ndarray:
        sideways, height = self._way()
        down = -height if np.linalg.norm(sideways) < ABOVE else 0.0
        move = np.clip(np.array([*sideways, down]) / LARGEST_STEP, -0.8, 0.8)
        move = np.clip(move + self.rng.normal(0, self.noise, 3), -1, 1)
        return np.array([*move, 0.0, 0.0, 0.0], np.float32)

    def steps_to_go(self) -> float:
        """What the scripted human judges a policy by: it falls almost steadily while the expert acts."""
        sideways, height = self._way()
        return float((max(np.abs(sideways).max() - ABOVE, 0) + max(height - TOUCH, 0)) / (0.8 * LARGEST_STEP))

    def _way(self):
        """To the button, in m: sideways (2,), and the height above it."""
        return self.driver.button - self.driver.position[:2], self.driver.position[2]


if "FakeArm-v0" not in gym.registry:
    gym.register("FakeArm-v0", entry_point="examples.fake_arm:FakeArm", max_episode_steps=40)

"""A device of one's own: a leader arm that a person moves by hand, and that the robot follows by joint differences.

    python record_demos.py --env examples.leader_arm:FollowerArm-v0 --setup_mode single-arm-learned-gripper \\
        --human examples.leader_arm:make_device --control_hz 10 --num_demos 2 --output_dir ./data/leader

Put your leader's driver where `Leader` is: `make_device` and its `read()` are all that the scripts need to know of it
(docs/devices.md). The follower is a made-up planar arm with three joints; its task is to bring the hand to the green
mark and to close the gripper there. The made-up leader is moved by a made-up person, who knows where the mark is.
"""

import gymnasium as gym
import numpy as np

LINKS = np.array([0.15, 0.12, 0.08])  # m
LARGEST_STEP = 0.1  # rad per step and joint at a command of 1
REACHED = 0.025  # m
SIZE = 128  # pixels
STILL = 0.01  # of a command: smaller differences are a leader at rest


def hand(joints: np.ndarray) -> np.ndarray:
    """Place (2,) of the hand in m for joint angles (3,)."""
    angles = np.cumsum(joints)
    return np.array([(LINKS * np.cos(angles)).sum(), (LINKS * np.sin(angles)).sum()])


class FollowerArm(gym.Env):
    """Observation: camera `image`, `state` = joint angles and gripper. Action (4,): joint differences, gripper."""

    def __init__(self):
        camera, state = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8), gym.spaces.Box(-7, 7, (4,), np.float32)
        self.observation_space = gym.spaces.Dict({"image": camera, "state": state})
        self.action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.joints, self.open = np.array([0.6, 0.9, 0.4]), True
        self.mark = hand(np.array([0.3, 0.8, 0.5]) + self.np_random.uniform(-0.4, 0.4, 3))
        return self._observe(), {"succeed": False}

    def step(self, action):
        self.joints = np.clip(self.joints + LARGEST_STEP * np.asarray(action[:3], np.float64), -3, 3)
        command = round(float(action[3]))
        changes = command != 0 and (command == 1) != self.open
        self.open = self.open != changes
        succeed = bool(not self.open and np.linalg.norm(hand(self.joints) - self.mark) < REACHED)
        info = {"succeed": succeed, "grasp_penalty": -0.02 * changes}
        return self._observe(), float(succeed), succeed, False, info

    def _observe(self):
        x, y = np.meshgrid(np.linspace(-0.4, 0.4, SIZE), np.linspace(-0.4, 0.4, SIZE), indexing="ij")
        image = np.full((SIZE, SIZE, 3), (190, 185, 175), np.uint8)
        image[np.hypot(x - self.mark[0], y - self.mark[1]) < 0.02] = (40, 160, 60)
        angles, elbow = np.cumsum(self.joints), np.zeros(2)
        for length, angle in zip(LINKS, angles):
            for share in np.linspace(0, 1, 12):
                place = elbow + share * length * np.array([np.cos(angle), np.sin(angle)])
                image[np.hypot(x - place[0], y - place[1]) < 0.012] = (60, 70, 140) if self.open else (140, 60, 70)
            elbow = elbow + length * np.array([np.cos(angle), np.sin(angle)])
        return {"image": image, "state": np.append(self.joints, float(self.open)).astype(np.float32)}


class Leader:
    """Stands for the leader arm's driver, and for the person who moves it: replace `joints` and `trigger`."""

    def __init__(self, robot: FollowerArm):
        self.robot, self.rng = robot, np.random.default_rng(0)

    def joints(self) -> np.ndarray:
        """Where the leader's joints are, (3,) rad: here, where a gradient step brings the hand nearer to the mark."""
        here, nudge = self.robot.joints, 1e-4 * np.eye(3)
        slope = np.array([(self._distance(here + d) - self._distance(here)) / 1e-4 for d in nudge])
        way = min(self._distance(here), 0.03) / (slope @ slope + 1e-3)
        return here - way * slope + self.rng.normal(0, 0.002, 3)

    def trigger(self) -> bool:
        """Whether the person squeezes the leader's handle."""
        return self._distance(self.robot.joints) < 0.5 * REACHED

    def _distance(self, joints):
        return float(np.linalg.norm(hand(joints) - self.robot.mark))


class LeaderDevice:
    """Commands the difference between leader and follower; the handle closes and opens the gripper."""

    def __init__(self, leader: Leader, robot: FollowerArm):
        self.leader, self.robot = leader, robot

    def read(self) -> dict:
        """See docs/devices.md."""
        difference = ((self.leader.joints() - self.robot.joints) / LARGEST_STEP).clip(-1, 1)
        difference[np.abs(difference) < STILL] = 0.0
        squeezed = self.leader.trigger()
        gripper = -1.0 if squeezed and self.robot.open else 1.0 if not squeezed and not self.robot.open else 0.0
        return {"action": np.append(difference, gripper), "in_control": bool(difference.any() or gripper)}

    def close(self) -> None:
        pass  # release the serial port


def make_device(env: gym.Env) -> LeaderDevice:
    """What `--human examples.leader_arm:make_device` calls, with the environment that is to be steered."""
    robot = env.unwrapped
    return LeaderDevice(Leader(robot), robot)


if "FollowerArm-v0" not in gym.registry:
    gym.register("FollowerArm-v0", entry_point="examples.leader_arm:FollowerArm", max_episode_steps=60)

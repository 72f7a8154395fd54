"""The example environment: the contract, demos that read well, and that it keeps its rate."""

import time

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from examples import fake_arm
from pytorch_serl.data.demos import read_demos
from pytorch_serl.training import build


def test_the_fake_arm_is_an_environment_whose_demos_fit(tmp_path, capsys):
    check_env(gym.make("FakeArm-v0", hz=0).unwrapped, skip_render_check=True)
    fake_arm.record(tmp_path / "demos.pkl", episodes=5, hz=0)
    demos = read_demos(tmp_path / "demos.pkl", ["front", "wrist"], "single-arm-fixed-gripper")
    assert len(np.unique(demos.episode_ids)) == 5 and sum(t["rewards"] for t in demos.transitions) == 5
    build.check_env(build.make_env("examples.fake_arm:FakeArm-v0", "single-arm-fixed-gripper"), demos, "FakeArm-v0")


def test_it_keeps_its_rate():
    env = gym.make("FakeArm-v0", hz=50)
    env.reset(seed=0)
    times = []
    for _ in range(12):
        env.step(np.zeros(6, np.float32))
        times.append(time.monotonic())
        time.sleep(0.005)  # what a policy takes
    assert abs(np.median(np.diff(times)) - 0.02) < 0.003

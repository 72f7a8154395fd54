"""The example environment: the contract, demos that read well, and that it keeps its rate."""

import time

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

import examples.fake_arm  # noqa: F401
from pytorch_serl.data.demos import read_demos
from pytorch_serl.envs.human.scripted import check_expert
from pytorch_serl.training import build
from tests.runs import FIXED, record


def test_the_fake_arm_is_an_environment_whose_demos_fit(tmp_path, capsys):
    check_env(gym.make("FakeArm-v0", hz=0).unwrapped, skip_render_check=True)
    options = {"env": "examples.fake_arm:FakeArm-v0", "env_args": "hz=0", "human": "scripted", "noise": 0.05}
    record(FIXED, tmp_path, num_demos=5, num_classifier_episodes=0, **options)
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


def test_nobody_would_interrupt_its_expert():
    check = check_expert(gym.make("FakeArm-v0", hz=0), 20)
    assert len(check.steps_to_success) == 20 and not check.interruptions, check

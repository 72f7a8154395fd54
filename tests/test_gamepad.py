"""The human with a gamepad: what sticks and buttons do. How he judges is tested with the keyboard."""

import subprocess
import sys

import numpy as np
import pytest

from pytorch_serl.envs.human.gamepad import GamepadHuman
from tests.runs import ROOT
from tests.test_keyboard import beside

LOOK = {"leftx": 0.0, "lefty": 0.0, "rightx": 0.0, "righty": 0.0}


class Held:
    """A pad that is held as told at each look: sticks and buttons; the last look goes on."""

    def __init__(self, *looks):
        self.looks = [(LOOK | sticks, set(buttons.split())) for sticks, buttons in looks]

    def read(self):
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def human(*looks, **options):
    return beside(GamepadHuman, Held(*looks), **options)


def test_sticks_move_only_while_the_button_is_held():
    full, hold = {"lefty": -1.0}, "rightshoulder"
    env = human((full, ""), (full, hold), ({"leftx": 0.575, "righty": 1.0}, hold), ({}, hold), (full, ""))
    infos = [env.step(env.policy)[4] for _ in range(4)]
    assert ["intervene_action" in info for info in infos] == [False, True, True, False]
    assert infos[1]["intervene_action"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert np.allclose(infos[2]["intervene_action"], [0, -0.5, -1, 0, 0, 0, 0])
    assert infos[2]["intervene_action"].dtype == np.float32
    assert env.lines == ["in control: you, arm", "in control: the policy"]  # a still stick waits, then he lets go


def test_turning_gripper_and_small_ways():
    hold = "rightshoulder"
    env = human(
        ({"rightx": -1.0, "lefty": 0.1}, f"{hold} dpad_up dpad_left"),
        ({}, f"{hold} a"),
        ({}, f"{hold} a"),
        ({"lefty": 1.0}, f"{hold} a"),
        ({}, hold),
        ({}, f"{hold} b"),
    )
    actions = [env.step(env.policy)[4]["intervene_action"].tolist() for _ in range(4)]
    assert actions == [[0, 0, 0, -1, 1, 1, 0], [0, 0, 0, 0, 0, 0, -1], [-1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]]


def test_two_arms():
    hold = "rightshoulder"
    looks = [({"lefty": -1.0}, hold), ({"lefty": -1.0}, f"{hold} leftshoulder")]
    env = human(*looks, arms=2)
    moved = [env.step(env.policy)[4]["intervene_action"].reshape(2, 7).any(axis=1).tolist() for _ in range(3)]
    assert moved == [[True, False], [False, True], [False, True]]
    assert env.lines == ["in control: you, left arm", "you move the right arm"]


@pytest.mark.parametrize("button, success", [("y", True), ("x", False)])
def test_a_button_ends_the_episode(button, success):
    env = human(({}, button))
    _, reward, terminated, truncated, info = env.step(env.policy)
    assert (reward, terminated, truncated, info["human_verdict"]) == (success, success, not success, success)
    env.reset()
    assert "human_verdict" not in env.step(env.policy)[4]  # it is still down, which is not another verdict


def test_asks_and_pauses():
    env = human(({}, "start"), ({}, ""), ({}, "start"), ({}, ""), ({}, "x"), ends=[(1.0, True, True)], judge="confirm")
    assert env.step(env.policy)[1:4] == (0.0, False, True)
    assert env.lines == ["paused; start goes on", "goes on", "success? Y or X"]


def test_without_pygame_or_without_a_gamepad_it_is_refused():
    program = "import sys; sys.modules['pygame'] = None; from pytorch_serl.envs.human.gamepad import Gamepad; Gamepad()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "--human gamepad needs pygame: python -m pip install -r requirements/gamepad.txt" in done.stderr

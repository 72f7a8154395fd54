"""The human with a gamepad: what sticks and buttons do. How he judges is tested with the keyboard."""

import subprocess
import sys

import numpy as np
import pytest

from pytorch_serl.envs.human.gamepad import Gamepad, GamepadHuman
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


def test_a_press_between_two_looks_is_seen():
    pygame = pytest.importorskip("pygame")
    pygame.display.init()
    pad = Gamepad.__new__(Gamepad)  # none is plugged in here: the device is made up, the events are pygame's
    pad.pygame, pad.axes = pygame, {"lefty": 1}
    pad.buttons = {"y": pygame.CONTROLLER_BUTTON_Y, "a": pygame.CONTROLLER_BUTTON_A}

    class Device:
        down = set()

        def attached(self):
            return True

        def get_axis(self, number):
            return 0

        def get_button(self, number):
            return number in self.down

    def event(kind, name):
        pygame.event.post(pygame.event.Event(kind, button=pad.buttons[name], instance_id=0))

    pad.device = Device()
    assert pad.read()[1] == set()
    event(pygame.CONTROLLERBUTTONDOWN, "y"), event(pygame.CONTROLLERBUTTONUP, "y")
    assert pad.read()[1] == {"y"} and pad.read()[1] == set()
    pad.device.down = {pad.buttons["a"]}
    event(pygame.CONTROLLERBUTTONDOWN, "a")
    assert [pad.read()[1] for _ in range(3)] == [{"a"}] * 3  # held
    pad.device.down = set()
    event(pygame.CONTROLLERBUTTONUP, "a")
    assert pad.read()[1] == set()
    for _ in range(1000):  # nothing piles up that could push a press out
        pygame.event.post(pygame.event.Event(pygame.CONTROLLERAXISMOTION, axis=1, value=1, instance_id=0))
    pad.read()
    assert not pygame.event.peek(pygame.CONTROLLERAXISMOTION)
    pygame.display.quit()

"""The human with a gamepad: what sticks and buttons do. How he judges is tested with the keyboard."""

import subprocess
import sys

import numpy as np
import pytest

from pytorch_serl.envs.human import device
from pytorch_serl.envs.human.device import DeviceGone
from pytorch_serl.envs.human.gamepad import Gamepad, GamepadHuman
from tests.runs import ROOT
from tests.test_keyboard import Typed, beside

LOOK = {"leftx": 0.0, "lefty": 0.0, "rightx": 0.0, "righty": 0.0}


class Held:
    """A pad that is held as told at each look: sticks and buttons; the last look goes on."""

    def __init__(self, *looks):
        self.looks = [look if isinstance(look, Exception) else (LOOK | look[0], set(look[1].split())) for look in looks]

    def read(self):
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look


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


def test_a_pause_between_two_episodes_holds_the_robot():
    env = human(({}, "start"), ({}, "y"), ({}, "start"), ({}, ""))
    env.reset()
    assert env.lines == ["paused; start goes on", "goes on"]


def test_a_pause_forgets_the_command_given_before_it():
    full, hold = {"lefty": -1.0}, "rightshoulder"
    env = human((full, hold), (full, f"{hold} start"), ({}, ""), ({}, "start"), ({}, ""))
    env.step(env.policy)
    assert "intervene_action" not in env.step(env.policy)[4]  # he has let go meanwhile
    assert np.array_equal(env.env.actions[-1], env.policy) and env.lines[-1] == "in control: the policy"


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


@pytest.mark.parametrize(
    "buttons, keys, labels",
    [
        (["", "y", "y", ""], ["", "", "", ""], [0, 1, 1, 0]),  # the button is held
        (["", "", "", ""], ["y", "", "n", ""], [1, 1, 0, 0]),  # a key holds until the other
        (["", "", "x", ""], ["y", "", "", "y"], [1, 1, 0, 1]),
        (["", "y", "", ""], ["y", "", "", ""], [1, 1, 0, 0]),
    ],
)
def test_a_scene_is_labelled_by_a_button_that_is_held_or_by_keys(buttons, keys, labels):
    looks = [({"lefty": -1.0}, button) for button in ("", "", *buttons)]
    env = human(*looks, keys=Typed("y", "y", *keys), judge="label").steered(leads=True)
    env.reset()  # what was typed before says nothing
    assert [env.step(0 * env.policy)[4]["label"] for _ in labels] == labels


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


@pytest.mark.parametrize("error", [DeviceGone("the gamepad is gone"), OSError("no such device"), EOFError("gone")])
def test_a_pad_that_is_pulled_out_stops_the_robot_until_it_is_back(error, monkeypatch):
    monkeypatch.setattr(device, "RETRY_SECONDS", 0.01)
    full, hold = {"lefty": -1.0}, "rightshoulder"
    env = human((full, hold), error, error, (full, ""), (full, hold))
    infos = [env.step(env.policy)[4] for _ in range(3)]
    assert ["intervene_action" in info for info in infos] == [True, False, True]  # back, he has to take over anew
    assert len(env.env.actions) == 3
    assert sum("gone" in line and "nothing is commanded" in line for line in env.lines) == 1
    assert "the device is back" in env.lines


def test_a_key_that_judges_while_the_pad_is_gone_moves_nothing(monkeypatch):
    monkeypatch.setattr(device, "RETRY_SECONDS", 0.01)
    env = human(({"lefty": -1.0}, "rightshoulder"), OSError("off"), keys=Typed("", "y"))
    env.step(env.policy)
    assert env.in_control and env.step(env.policy)[4]["human_verdict"] == 1.0 and not env.env.actions[-1].any()


def test_keys_work_beside_a_pad(monkeypatch):
    monkeypatch.setattr(device, "RETRY_SECONDS", 0.01)
    still = ({}, "")
    env = human(still, still, still, still, OSError("off"), keys=Typed("p", "", "p", "", "", "p", " ", "Y"))
    env.step(env.policy)
    assert env.lines == ["paused; start goes on", "goes on"]
    env.step(env.policy)  # gone, it waits anyway: p says nothing then
    assert len(env.env.actions) == 2 and len(env.lines) == 3 and "space goes on without it" in env.lines[2]
    assert env.step(env.policy)[4]["human_verdict"] == 1.0
    paused = human(still, keys=Typed("p", "", " "))
    paused.step(paused.policy)
    assert paused.lines == ["paused; start goes on", "goes on"]
    waits = human(({}, ""), keys=Typed("", "w", " "))
    waits.wait_until_ready()


def test_a_pad_is_found_again_when_it_is_plugged_in():
    pygame = pytest.importorskip("pygame")
    pygame.display.init()

    class Device:
        there = True

        def __init__(self, number):
            self.number = number

        def attached(self):
            return self.there

        def get_axis(self, number):
            return 32767

        get_button = is_controller = None

    class Controllers:
        count, Controller = 1, Device

        def get_count(self):
            return self.count

        def is_controller(self, number):
            return True

    pad = Gamepad.__new__(Gamepad)
    pad.pygame, pad.controller, pad.device = pygame, Controllers(), Device(0)
    pad.axes, pad.buttons = {"lefty": 1}, {}
    assert pad.read()[0] == {"lefty": 1.0}
    pad.device.there, pad.controller.count = False, 0
    for _ in range(2):
        with pytest.raises(DeviceGone, match="the gamepad is gone"):
            pad.read()
    pad.controller.count = 1
    assert pad.read()[0] == {"lefty": 1.0} and pad.device.there
    pygame.display.quit()

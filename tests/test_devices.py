"""Space mice and devices of one's own: who steers, what is executed, accidents; against fakes of their interfaces."""

import os
import signal
import threading
import types

import gymnasium as gym
import numpy as np
import pytest

from pytorch_serl.envs.human import device as device_module
from pytorch_serl.envs.human import spacemouse
from pytorch_serl.envs.human.device import DeviceGone, DeviceHuman, load_device
from pytorch_serl.envs.human.spacemouse import SpaceMice
from pytorch_serl.utils.signals import stop_if_told, uninterrupted


class FakeMouse:
    """One device of the fake library: `reports` come one a read; None: nothing new has come then."""

    def __init__(self, reports):
        self.reports, self.time, self.closed = reports, 0.0, False
        self.state = types.SimpleNamespace(t=-1.0, x=0.0, y=0.0, z=0.0, roll=0.0, pitch=0.0, yaw=0.0, buttons=[0, 0])

    def read(self):
        if self.reports:
            report = self.reports.pop(0)
            if isinstance(report, Exception):
                raise report
            if report is None:
                return self.state
            self.time += 0.001
            vars(self.state).update(report | {"t": self.time})
        return self.state

    def close(self):
        self.closed = True


class FakeLibrary:
    """Speaks pyspacemouse's interface."""

    def __init__(self, **mice):
        self.mice, self.refuses, self.conventions = mice, None, []

    def get_connected_devices_by_path(self):
        return dict.fromkeys(self.mice, "SpaceMouse Compact")

    def open_by_path(self, path, axis_convention):
        self.conventions.append(axis_convention)
        if self.refuses:
            raise self.refuses
        return self.mice[path]


class Robot(gym.Env):
    """Remembers what it was told."""

    observation_space = gym.spaces.Dict({"state": gym.spaces.Box(-1, 1, (1,))})

    def __init__(self, entries=7):
        self.action_space, self.told = gym.spaces.Box(-1, 1, (entries,)), []

    def reset(self, *, seed=None, options=None):
        return {"state": np.zeros(1, np.float32)}, {}

    def step(self, action):
        self.told.append(action)
        return {"state": np.zeros(1, np.float32)}, 0.0, False, False, {"succeed": False}


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when somebody sleeps, or by hand."""
    now = [100.0]
    fake = types.SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(spacemouse, "time", fake)
    monkeypatch.setattr(device_module, "time", fake)
    return now


POLICY = np.full(7, 0.3, np.float32)


def human(library, entries=7, arms=1, lines=None, **settings):
    env, say = Robot(entries), (lines if lines is not None else []).append
    mice = SpaceMice((entries,), arms=arms, grippers=True, library=library, say=say, **settings)
    made = DeviceHuman(env, mice, arms=arms, grippers=True, say=say)
    made.reset()
    return env, made


def test_moving_takes_over_and_letting_go_hands_back_after_half_a_second(clock):
    mouse = FakeMouse([{"x": 0.5}, None, {"x": 0.0}])
    env, made = human(FakeLibrary(a=mouse))
    clock[0] += 1.0
    assert "intervene_action" not in made.step(POLICY)[4] and np.array_equal(env.told[-1], POLICY)
    mouse.reports[:] = [{"x": 0.55, "yaw": -1.0}]
    info = made.step(POLICY)[4]
    wanted = np.array([0.5, 0, 0, 0, 0, -1, 0], np.float32)  # 0.1 of the way is the dead zone
    assert np.allclose(info["intervene_action"], wanted) and np.array_equal(env.told[-1], info["intervene_action"])
    mouse.reports[:] = [{"x": 0.09, "yaw": 0.0}]  # let go, but not in the very middle
    before = clock[0]
    assert "intervene_action" not in made.step(POLICY)[4]  # the arm stood still meanwhile
    assert 0.4 < clock[0] - before < 0.7 and np.array_equal(env.told[-1], POLICY) and len(env.told) == 3


def test_buttons_close_and_open_once_for_a_press(clock):
    mouse = FakeMouse([{"x": 1.0}, None, {"x": 0.0}])
    _, made = human(FakeLibrary(a=mouse))
    taken = []
    for buttons in ([1, 0], [1, 0], [0, 1]):
        mouse.reports[:] = [{"x": 0.5, "buttons": buttons}]
        taken.append(made.step(POLICY)[4]["intervene_action"][-1])
    assert taken == [-1.0, 0.0, 1.0]


def test_a_queue_of_reports_is_read_to_its_end(clock):
    mouse = FakeMouse([{"x": 1.0}, None, {"x": 0.0}])
    _, made = human(FakeLibrary(a=mouse))
    mouse.reports[:] = [{"x": i / 50} for i in range(40)] + [{"x": -1.0}]
    assert made.step(POLICY)[4]["intervene_action"][0] == -1.0 and not mouse.reports


def test_dead_zone_signs_and_scale_are_options(clock):
    mouse = FakeMouse([{"x": 1.0}, None, {"x": 0.0}])
    options = {"dead_zone": 0.0, "signs": (-1, 1, 1, 1, 1, 1), "scale": 2.0}
    _, made = human(FakeLibrary(a=mouse), **options)
    mouse.reports[:] = [{"x": 0.2, "y": 0.7}]
    assert np.allclose(made.step(POLICY)[4]["intervene_action"], [-0.4, 1, 0, 0, 0, 0, 0])


def test_two_arms_have_the_mice_that_were_moved_for_them(clock):
    """The right one is first in the list of devices, as chance has it."""
    lines = []
    right, left = FakeMouse([]), FakeMouse([{"y": -0.8}, None, {"y": 0.0}])
    plugged = FakeLibrary(a=right, b=left)
    right_read = right.read

    def read_right():  # once the left one has been moved, somebody moves the right one
        if len(lines) == 2 and right.time == 0 and not right.reports:
            right.reports += [{"z": 0.9}, None, {"z": 0.0}]
        return right_read()

    right.read = read_right
    _, made = human(plugged, entries=14, arms=2, lines=lines)
    assert lines[:2] == ["move the space mouse of the left arm", "move the space mouse of the right arm"]
    assert set(plugged.conventions) == {"ros"}
    left.reports[:], right.reports[:] = [{"x": 1.0}], [{"z": -1.0, "buttons": [1, 0]}]
    taken = made.step(np.zeros(14, np.float32))[4]["intervene_action"]
    assert taken[0] == 1.0 and taken[7 + 2] == -1.0 and taken[13] == -1.0 and np.count_nonzero(taken) == 3


def test_a_mouse_that_is_pulled_out_stops_the_robot_until_it_is_back(clock):
    lines, mouse = [], FakeMouse([{"x": 1.0}, None, {"x": 0.0}])
    library = FakeLibrary(a=mouse)
    env, made = human(library, lines=lines)
    told = len(env.told)
    mouse.reports[:] = [OSError("read failed"), OSError("still"), {"x": 0.0}]
    library.refuses = None
    made.step(POLICY)
    assert len(env.told) == told + 1 and mouse.closed
    assert any("gone" in line and "nothing is commanded" in line for line in lines) and "the device is back" in lines


def test_a_mouse_that_comes_back_elsewhere_is_asked_for_again(clock):
    """Plugged in again, a mouse may have another path; two of them must not be swapped."""
    lines = []
    left, right = FakeMouse([{"x": 1.0}, None, {"x": 0.0}]), FakeMouse([])
    library = FakeLibrary(a=left, b=right)
    right_read = right.read

    def read_right():
        if len(lines) == 2 and right.time == 0 and not right.reports:
            right.reports += [{"z": 0.9}, None, {"z": 0.0}]
        return right_read()

    right.read = read_right
    env, made = human(library, entries=14, arms=2, lines=lines)
    assert made.device.order == ["a", "b"]
    left.reports[:] = [OSError("read failed")]
    there = FakeMouse([{"y": 0.9}, None, {"y": 0.0}])
    library.mice = {"b": right}
    sleep = device_module.time.sleep

    def plugged_in_elsewhere(seconds):  # after two looks for it
        sleep(seconds)
        if len(lines) == 3 and clock[0] > waited + 1:
            library.mice = {"b": right, "c": there}
        if lines[-1].startswith("move the space mouse of the right") and len(lines) > 4 and not right.reports:
            right.reports += [{"z": 0.9}, None, {"z": 0.0}]

    waited, device_module.time.sleep = clock[0], plugged_in_elsewhere
    made.step(np.zeros(14, np.float32))
    assert made.device.order == ["c", "b"] and clock[0] > waited + 1 and len(env.told) == 1
    assert "gone" in lines[2] and lines[-1] == "the device is back"


@pytest.mark.parametrize(
    "library, message",
    [
        (FakeLibrary(), "0 space mice are there, wanted 1"),
        (FakeLibrary(a=FakeMouse([])), "only zeros over USB.*Bluetooth"),
    ],
)
def test_what_is_wrong_at_the_start_is_said(library, message, clock):
    with pytest.raises(ValueError, match=message):
        SpaceMice((7,), arms=1, grippers=True, library=library, say=lambda line: None)


def test_missing_rights_and_libraries_are_named(clock, monkeypatch):
    library = FakeLibrary(a=FakeMouse([]))
    library.refuses = RuntimeError("Failed to open device")
    with pytest.raises(ValueError, match=r"udev.*hidraw.*256f"):
        SpaceMice((7,), arms=1, grippers=True, library=library)
    library.get_connected_devices_by_path = lambda: (_ for _ in ()).throw(RuntimeError("HID API"))
    with pytest.raises(ValueError, match="libhidapi"):
        SpaceMice((7,), arms=1, grippers=True, library=library)
    monkeypatch.setitem(__import__("sys").modules, "pyspacemouse", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements/spacemouse.txt"):
        SpaceMice((7,), arms=1, grippers=True)


# ---------------------------------------------------------------- devices of one's own


class Glove:
    """Readings in turn; the last one again and again."""

    def __init__(self, *readings):
        self.readings = list(readings)

    def read(self):
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(reading, Exception):
            raise reading
        return reading


class Keys:
    def __init__(self, *keys):
        self.keys = list(keys)

    def read(self, timeout=0.0):
        return self.keys.pop(0) if self.keys else ""


MOVE = {"action": [0.1] * 7, "in_control": True}
REST = {"action": np.zeros(7), "in_control": False}


def wearing(glove, keys=None, lines=None, **settings):
    say = (lines if lines is not None else []).append
    env = Robot()
    return env, DeviceHuman(env, glove, keys=keys, arms=1, grippers=True, say=say, **settings)


def test_any_device_with_read_steers(clock):
    env, made = wearing(Glove(REST, REST, REST, MOVE, REST))
    made.reset()
    assert "intervene_action" not in made.step(POLICY)[4]
    assert np.allclose(made.step(POLICY)[4]["intervene_action"], 0.1) and np.allclose(env.told[-1], 0.1)
    assert "intervene_action" not in made.step(POLICY)[4]


def test_it_does_not_steer_in_an_evaluation(clock):
    env, made = wearing(Glove(REST, REST, MOVE), steer=False)
    made.reset()
    made.step(POLICY)
    assert "intervene_action" not in made.step(POLICY)[4] and np.array_equal(env.told[-1], POLICY)


def test_in_a_recording_he_leads_from_the_reset_on(clock):
    env, made = wearing(Glove(REST, REST, REST, MOVE | {"in_control": False}))
    made = made.steered(leads=True)
    made.reset()
    assert np.allclose(made.step(np.zeros(7))[4]["intervene_action"], 0.1) and len(env.told) == 1


@pytest.mark.parametrize("said, key", [("success", ""), ("failure", ""), ("", "y"), ("", "N")])
def test_buttons_and_keys_judge(said, key, clock):
    _, made = wearing(Glove(REST, REST, REST | {said: True} if said else REST, REST), Keys("", "", key))
    made.reset()
    _, reward, terminated, truncated, info = made.step(POLICY)
    success = said == "success" or key == "y"
    assert info["succeed"] == success and reward == success and terminated == success and truncated != success


def test_an_episode_is_thrown_away_with_one_key(clock):
    _, made = wearing(Glove(REST), Keys("", "", "x"))
    made.reset()
    _, _, _, truncated, info = made.step(POLICY)
    assert truncated and info["discard"]
    made.reset()
    assert "discard" not in made.step(POLICY)[4]


@pytest.mark.parametrize("readings, keys", [([REST], ["p", "", "p"]), ([REST | {"pause": True}] * 2 + [REST], [])])
def test_a_pause_between_two_episodes_holds_the_robot(readings, keys, clock):
    lines = []
    _, made = wearing(Glove(*readings), Keys(*keys), lines)
    made.reset()
    assert lines == ["paused; p or the button goes on", "goes on"]


def test_a_pause_waits_and_ready_is_asked(clock):
    lines = []
    env, made = wearing(Glove(REST), Keys("", "", "p", "", "w", "p"), lines)
    made.reset()
    made.step(POLICY)
    assert [line.partition(";")[0] for line in lines] == ["paused", "goes on"] and len(env.told) == 1
    made.keys = Keys("", "", " ")
    made.wait_until_ready()
    assert "ready?" in lines[-1] and not made.keys.keys


def test_a_pause_forgets_the_command_given_before_it(clock):
    env, made = wearing(Glove(REST, REST, MOVE | {"pause": True}, REST | {"pause": True}, REST))
    made.reset()
    assert "intervene_action" not in made.step(POLICY)[4] and np.array_equal(env.told[-1], POLICY)


def test_labels_end_nothing(clock):
    _, made = wearing(Glove(REST), Keys("", "", "", "y", "", "n"), judge="label")
    made.reset()
    steps = [made.step(POLICY) for _ in range(4)]
    assert [step[4]["label"] for step in steps] == [0.0, 1.0, 1.0, 0.0]
    assert not any(step[2] or step[3] for step in steps)


@pytest.mark.parametrize(
    "reading, message",
    [
        ([0.0] * 7, "returned list; wanted a dict"),
        ({"action": [0.0] * 7}, r"returned \['action'\]"),
        (MOVE | {"sucess": True}, "sucess"),
        (MOVE | {"action": [0.1] * 6}, r"wanted \(7,\) numbers"),
        (MOVE | {"action": [np.nan] * 7}, r"in \[-1, 1\]"),
        (MOVE | {"action": [2.0] * 7}, r"in \[-1, 1\]"),
    ],
)
def test_a_reading_of_another_form_is_refused(reading, message, clock):
    env, made = wearing(Glove(reading))
    with pytest.raises(ValueError, match=message):
        made.reset()
        made.step(POLICY)
    assert not env.told


def test_a_device_of_ones_own_may_be_gone_too(clock):
    lines = []
    _, made = wearing(Glove(REST, REST, DeviceGone("the leader arm is off"), MOVE), lines=lines)
    made.reset()
    assert "intervene_action" in made.step(POLICY)[4] and "the leader arm is off; nothing is commanded" in lines[0]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), EOFError("closed"), ConnectionResetError()])
def test_any_device_that_is_pulled_out_stops_the_robot_until_it_is_back(error, clock):
    lines = []
    env, made = wearing(Glove(REST, REST, MOVE, error, error, error, MOVE, REST), lines=lines)
    made.reset()
    made.step(POLICY)
    before = clock[0]
    assert "intervene_action" in made.step(POLICY)[4] and len(env.told) == 2  # once, after it came back
    assert clock[0] >= before + 3 * device_module.RETRY_SECONDS
    gone = [line for line in lines if "is gone" in line]
    assert len(gone) == 1 and f"the device is gone ({type(error).__name__}" in gone[0]
    assert "nothing is commanded" in gone[0] and "the device is back" in lines
    assert "intervene_action" not in made.step(POLICY)[4]


def test_what_the_device_does_wrong_is_no_device_that_is_gone(clock):
    _, made = wearing(Glove(REST, REST, KeyError("joint")))
    made.reset()
    with pytest.raises(KeyError):
        made.step(POLICY)


def test_a_key_goes_on_without_the_device_until_it_is_back(clock):
    lines = []
    glove = Glove(REST, REST, OSError("off"), OSError("off"), OSError("off"), MOVE)
    env, made = wearing(glove, Keys("", "", "", "", " "), lines)
    made.reset()
    before = clock[0]
    assert "intervene_action" not in made.step(POLICY)[4] and "space goes on without it" in lines[0]
    assert np.array_equal(env.told[-1], POLICY) and clock[0] >= before + device_module.RETRY_SECONDS
    asked = len(glove.readings)
    assert "intervene_action" not in made.step(POLICY)[4]  # at once: it is not asked at every step
    assert len(glove.readings) == asked and len(lines) == 1
    for _ in range(2):
        clock[0] += device_module.RETRY_SECONDS
        info = made.step(POLICY)[4]
    assert "intervene_action" in info and "the device is back" in lines


def test_in_a_recording_keys_end_the_episode_of_a_device_that_is_gone(clock):
    """Nobody else could go on with it."""
    lines = []
    env, made = wearing(Glove(REST, REST, OSError("off")), Keys("", "", "", " ", "", "x"), lines)
    made = made.steered(leads=True)
    made.reset()
    _, _, _, truncated, info = made.step(np.zeros(7))
    assert truncated and info["discard"] and len(env.told) == 1 and not made.keys.keys
    assert "space" not in lines[-1]


def test_a_wait_for_a_device_ends_with_the_first_interrupt(monkeypatch):
    """Even where interrupts wait for the end of a step."""
    _, made = wearing(Glove(REST, REST, OSError("off")))
    made.reset()
    monkeypatch.setattr(device_module, "RETRY_SECONDS", 0.01)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        made.step(POLICY)
    timer.join()
    with uninterrupted():  # and nothing of it is left
        stop_if_told()


def test_a_device_is_found_by_its_name():
    assert (
        load_device("tests.test_devices:Glove") is Glove or load_device("tests.test_devices:Glove").__name__ == "Glove"
    )
    for name in ("no_such_package:make", "tests.test_devices:nothing", "tests.test_devices:MOVE"):
        with pytest.raises(ValueError, match=f"--human {name}"):
            load_device(name)

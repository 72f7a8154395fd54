"""record_demos.py with people: typed keys in a pseudo-terminal, a fake gamepad, a fake space mouse, a leader arm."""

import os
import pickle
import pty
import select
import subprocess
import sys
import time

import numpy as np
import pytest

import record_demos
from pytorch_serl.data.demos import read_demos
from pytorch_serl.data.frames import read_classifier_frames
from pytorch_serl.envs.human import gamepad, spacemouse
from pytorch_serl.envs.human.gamepad import GamepadHuman
from tests.runs import FIXED, LEARNED, ROOT, command

FAKE_ARM = {"env": "examples.fake_arm:FakeArm-v0", "env_args": "hz=0", "setup_mode": FIXED}


def to_the_button(arm):
    """The way (3,) of the fake arm's hand to the button, as a command: over it first, then down."""
    sideways = arm.driver.button - arm.driver.position[:2]
    down = -arm.driver.position[2] if np.linalg.norm(sideways) < 0.012 else 0.0
    return np.clip(np.array([*sideways, down]) / 0.03, -1, 1)


def recorded(tmp_path, **options):
    record_demos.main(command({"output_dir": tmp_path, "image_keys": ["front", "wrist"]} | FAKE_ARM | options))
    return read_demos(tmp_path / "demos.pkl", ["front", "wrist"], FIXED)


def test_a_leader_arm_records(tmp_path):
    options = {"env": "examples.leader_arm:FollowerArm-v0", "human": "examples.leader_arm:make_device"}
    line = options | {"setup_mode": LEARNED, "num_demos": 2, "output_dir": tmp_path}
    record_demos.main(command(line))
    demos = read_demos(tmp_path / "demos.pkl", ["image"], LEARNED)
    assert sum(t["rewards"] for t in demos.transitions) == 2 and demos.action_dim == 4
    assert {-1.0} < {float(t["actions"][-1]) for t in demos.transitions} <= {-1.0, 0.0}
    frames = read_classifier_frames(tmp_path / "success", tmp_path / "failure", ["image"])
    assert set(frames.labels) == {0, 1}


class FakePad:
    """A person with a gamepad who sees the robot: sticks by name, buttons that are down."""

    def __init__(self):
        self.arm, self.looks, self.buttons = None, 0, []

    def read(self):
        self.looks += 1
        if self.arm is None or not hasattr(self.arm, "np_random"):
            return dict.fromkeys(gamepad.STICKS, 0.0), {"start"} if self.looks % 2 else set()
        move = to_the_button(self.arm)
        sticks = {name: direction * move[entry] for name, (entry, direction) in gamepad.STICKS.items() if entry < 3}
        pressed = set(self.buttons.pop(0)) if self.buttons else {"start"} if self.looks % 2 else set()
        return sticks | {"rightx": 0.0}, pressed - ({"start"} if self.busy() else set())

    def busy(self):
        """Not between two episodes: there he says that the scene is set."""
        return self.human.in_control


def test_a_gamepad_records(tmp_path, monkeypatch):
    pad = FakePad()
    monkeypatch.setattr(gamepad, "Gamepad", lambda: pad)
    steered = GamepadHuman.steered

    def watched(self, **options):
        human = steered(self, **options)
        pad.human, pad.arm = human, human.unwrapped
        reset = type(human).reset
        wait = human._wait_for_go
        human._wait_for_go = lambda: (setattr(human, "in_control", False), wait())
        assert reset
        return human

    monkeypatch.setattr(GamepadHuman, "steered", watched)
    demos = recorded(tmp_path, human="gamepad", num_demos=2)
    assert len(np.unique(demos.episode_ids)) == 2 and sum(t["rewards"] for t in demos.transitions) == 2
    assert np.abs(np.stack([t["actions"] for t in demos.transitions])).max() > 0.5


def test_an_expert_at_hardware_records_no_further_scenes(tmp_path, capsys):
    recorded(tmp_path, human="scripted", num_demos=1)
    said = capsys.readouterr()
    assert "classifier frames: 1 success" in said.out and "scene" not in said.err


class FakeMice:
    """pyspacemouse with one device, held by somebody who sees the robot."""

    def __init__(self):
        self.arm, self.reads = None, 0

    def get_connected_devices_by_path(self):
        return {"/dev/hidraw0": "SpaceMouse Compact"}

    def open_by_path(self, path, axis_convention):
        return self

    def read(self):
        self.reads += 1
        move = to_the_button(self.arm) if self.arm is not None else np.array([1.0, 0, 0])
        ways = dict(zip("xyz", np.sign(move) * (0.1 + 0.9 * np.abs(move)) * (np.abs(move) > 0)))
        entries = {"t": self.reads // 2, "roll": 0.0, "pitch": 0.0, "yaw": 0.0, "buttons": [0, 0]}
        return type("State", (), entries | ways)

    def close(self):
        self.closed = True


def test_a_space_mouse_records(tmp_path, monkeypatch, capsys):
    mice = FakeMice()
    monkeypatch.setattr(spacemouse, "_library", lambda: mice)
    from pytorch_serl.envs.human.device import DeviceHuman

    asked = []

    def ready(human):
        mice.arm = human.unwrapped
        asked.append(human.go_on)

    monkeypatch.setattr(DeviceHuman, "wait_until_ready", ready)  # nobody sits at a terminal
    demos = recorded(tmp_path, human="spacemouse", num_demos=2)
    assert sum(t["rewards"] for t in demos.transitions) == 2 and mice.closed
    assert asked == ["space"] * 2  # it has no success button
    said = capsys.readouterr().out
    assert "there is nothing to take over" in said and said.count("go: you steer") == 2


class Typist:
    """A person at a terminal: answers what the program prints."""

    def __init__(self, words, **environment):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, close_fds=True, env=os.environ | environment
        )
        os.close(slave)
        self.text, self.seen = "", 0

    def wait_for(self, words, seconds=240):
        """Read until `words` come; what came before them is done with."""
        until = time.monotonic() + seconds
        while words not in self.text[self.seen :]:
            assert time.monotonic() < until, self.text[-2000:]
            if select.select([self.master], [], [], 1.0)[0]:
                try:
                    self.text += os.read(self.master, 4096).decode(errors="replace")
                except OSError:  # the program has ended
                    assert words in self.text[self.seen :], self.text[-2000:]
        self.seen += self.text[self.seen :].index(words) + len(words)

    def type(self, keys):
        for key in keys:
            os.write(self.master, key.encode())
            time.sleep(0.05)


@pytest.mark.slow
def test_typed_keys_record(tmp_path):
    """An episode thrown away, one that failed, two that the human calls successes; then labelled frames."""
    words = command({"human": "keyboard", "num_demos": 2, "output_dir": tmp_path, "keep_failures": True} | FAKE_ARM)
    person = Typist([sys.executable, "record_demos.py", *words], OMP_NUM_THREADS="1")
    for keys in ("wsx", "wadn", "wwsy", "aady"):
        person.wait_for("ready?")
        person.type(" ")
        time.sleep(0.3)
        person.type(keys)
    person.wait_for("next: python train_hybrid.py")
    assert person.process.wait(60) == 0
    demos = pickle.loads((tmp_path / "demos.pkl").read_bytes())
    assert [t["rewards"] for t in demos if t["dones"]] == [1.0, 1.0] and len(demos) == 8
    # the arm stands still in the step of the verdict
    assert [np.abs(t["actions"]).max() for t in demos] == [0.5, 0.5, 0.5, 0.0] * 2
    failed = pickle.loads((tmp_path / "failed_demos.pkl").read_bytes())
    assert len(failed) == 4 and failed[-1]["dones"] and not any(t["rewards"] for t in failed)

    words = command({"human": "keyboard", "num_demos": 1, "output_dir": tmp_path / "c", "classifier_only": True})
    person = Typist([sys.executable, "record_demos.py", *words, *command(FAKE_ARM)], OMP_NUM_THREADS="1")
    person.wait_for("ready?")
    person.type(" ")
    time.sleep(0.3)
    person.type("wwyssnadx")
    person.wait_for("next: python train_classifier.py")
    frames = read_classifier_frames(tmp_path / "c/success", tmp_path / "c/failure", ["front"])
    assert list(np.bincount(frames.labels)) == [5, 3]  # y and n are steps, too

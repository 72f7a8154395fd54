"""The human at the keyboard: what keys do, who judges, and a real terminal (a pseudo-terminal) once."""

import os
import pty
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

from pytorch_serl.envs.human.keyboard import SPEED, KeyboardHuman
from pytorch_serl.utils.signals import uninterrupted
from tests.runs import ROOT

NOTHING = np.full(14, 0.1, np.float32)


class Typed:
    """Keys as they come: one string per `read`; a read that waits and finds none left fails the test."""

    def __init__(self, *keys):
        self.keys = list(keys)

    def read(self, timeout=0.0):
        assert self.keys or timeout == 0.0, "waits for a key that nobody presses"
        return self.keys.pop(0) if self.keys else ""


class Recorder(gym.Env):
    """Keeps the actions; `ends` are (reward, terminated, succeed) of the coming steps."""

    def __init__(self, size, *ends):
        self.action_space = gym.spaces.Box(-1, 1, (size,), np.float32)
        self.observation_space, self.actions, self.ends = gym.spaces.Box(0, 1, (1,)), [], list(ends)

    def reset(self, **options):
        return np.zeros(1), {}

    def step(self, action):
        self.actions.append(action)
        reward, terminated, succeed = self.ends.pop(0) if self.ends else (0.0, False, False)
        return np.zeros(1), reward, terminated, False, {"succeed": succeed}


def beside(kind, device, arms=1, grippers=True, ends=(), **options):
    """A human of this kind beside a `Recorder`, with the lines that he is shown, and the policy's action."""
    lines = []
    env = Recorder(arms * (6 + grippers), *ends)
    env = kind(env, device, arms=arms, grippers=grippers, say=lines.append, **options)
    env.lines, env.policy = lines, NOTHING[: arms * (6 + grippers)]
    return env


def human(*keys, **options):
    return beside(KeyboardHuman, Typed(*keys), **options)


def test_the_policy_acts_until_somebody_takes_over_and_after_handing_back():
    env = human("", "wc", "t", "w", "dr", "o", "t", "")
    infos = [env.step(env.policy)[4] for _ in range(6)]
    helped = [i for i, info in enumerate(infos) if "intervene_action" in info]
    assert helped == [2, 3, 4]  # moving keys without t do nothing; t alone waits for a key
    wanted = np.zeros((3, 7), np.float32)
    wanted[0, 0], wanted[1, 1], wanted[1, 2], wanted[2, 6] = SPEED, -SPEED, SPEED, 1.0
    assert np.array_equal([infos[i]["intervene_action"] for i in helped], wanted)
    assert np.array_equal(env.env.actions[2:5], wanted) and infos[2]["intervene_action"].dtype == np.float32
    assert all(np.array_equal(env.env.actions[i], env.policy) for i in (0, 1, 5))
    assert env.lines == ["in control: you, arm", "in control: the policy"]


def test_two_arms_and_fixed_grippers():
    env = human("tw", "\tw", "\ts", arms=2)
    actions = [env.step(env.policy)[4]["intervene_action"].reshape(2, 7) for _ in range(3)]
    assert [a.any(axis=1).tolist() for a in actions] == [[True, False], [False, True], [True, False]]
    assert env.lines == ["in control: you, left arm", "you move the right arm", "you move the left arm"]
    env = human("t", "c", "w", grippers=False)
    assert env.step(env.policy)[4]["intervene_action"].tolist() == [SPEED, 0, 0, 0, 0, 0]


def test_a_pause_between_two_episodes_holds_the_robot():
    """What was typed as an episode ended is forgotten, but somebody may have paused to step up to the robot."""
    env = human("yp", "w", "p", "", "")
    env.env.reset = lambda **options: env.lines.append("the robot drives") or (np.zeros(1), {})
    env.reset()
    assert env.lines == ["paused; p goes on", "goes on", "the robot drives"] and env.device.keys == [""]
    assert "human_verdict" not in env.step(env.policy)[4]
    env = human("p", "")
    env.steered(leads=True).reset()  # in a recording it has waited already
    assert env.lines == ["go: you steer"]


@pytest.mark.parametrize("leads", [False, True])
def test_what_is_pressed_while_the_robot_drives_home_is_not_meant_for_the_next_episode(leads):
    env = human("", "tyx", "w").steered(leads=leads)
    env.reset()
    _, reward, terminated, truncated, info = env.step(env.policy)
    assert (reward, terminated, truncated) == (0.0, False, False) and "human_verdict" not in info
    env = human("", "yp", "w", "p").steered(leads=leads)  # but for a pause
    env.reset()
    assert env.lines == ["paused; p goes on", "goes on", "go: you steer"][: 2 + leads] and not env.device.keys


def test_who_records_is_told_when_the_robot_is_there():
    env = human("")
    env.env.reset = lambda **options: env.lines.append("the robot is at its start") or (np.zeros(1), {})
    env.steered(leads=True).reset()
    assert env.lines == ["the robot is at its start", "go: you steer"]


def test_pause_waits():
    env = human("p", "w", "x", "p", "")
    env.step(env.policy)
    assert env.lines == ["paused; p goes on", "goes on"] and len(env.device.keys) == 1


def test_a_pause_forgets_the_command_given_before_it():
    env = human("tw", "wpw", "x", "p", "s")
    env.step(env.policy)
    assert env.step(env.policy)[4]["intervene_action"].tolist() == [-SPEED, 0, 0, 0, 0, 0, 0]
    assert len(env.env.actions) == 2 and not env.device.keys


def test_an_episode_begins_with_the_policy_and_without_old_keys():
    env = human("t", "w", "y", "")
    env.step(env.policy)
    env.reset()
    assert env.step(env.policy)[1:3] == (0.0, False) and np.array_equal(env.env.actions[-1], env.policy)
    assert env.lines[-1] == "in control: the policy"


@pytest.mark.parametrize(
    "judge, keys, end, expected",  # end: reward, terminated, succeed; expected: those, truncated, the human's verdict
    [
        ("overrule", [""], (0.0, False, False), (0.0, False, False, False, None)),
        ("overrule", [""], (1.0, True, True), (1.0, True, True, False, None)),
        ("overrule", ["y"], (0.0, False, False), (1.0, True, True, False, 1.0)),
        ("overrule", ["n"], (1.0, True, True), (0.0, False, False, True, 0.0)),
        ("overrule", ["n"], (0.0, True, False), (0.0, True, False, False, 0.0)),  # it did end, by a fall, say
        ("overrule", ["n"], (-1.0, False, False), (-1.0, False, False, True, 0.0)),  # 0 would be what a goal gives
        ("overrule", ["y"], (10.0, True, True), (10.0, True, True, False, 1.0)),
        ("confirm", ["", "y"], (1.0, True, True), (1.0, True, True, False, 1.0)),
        ("confirm", ["", "wn"], (1.0, True, True), (0.0, False, False, True, 0.0)),
        ("confirm", [""], (0.0, False, False), (0.0, False, False, False, None)),
        ("alone", [""], (1.0, True, True), (0.0, False, False, False, None)),
        ("alone", ["y"], (0.0, False, False), (1.0, True, True, False, 1.0)),
    ],
)
def test_who_says_what_success_is(judge, keys, end, expected):
    env = human(*keys, ends=[end], judge=judge)
    _, reward, terminated, truncated, info = env.step(env.policy)
    assert (reward, terminated, info["succeed"], truncated, info.get("human_verdict")) == expected
    assert ("success? y or n" in env.lines) == (judge == "confirm" and end[2])


def test_a_success_that_is_denied_has_an_ordinary_steps_reward():
    """Where each step costs 1 and the goal nothing, 0 would say that the goal was reached."""
    env = human("", "n", ends=[(-1.0, False, False), (0.0, True, True)])
    env.step(env.policy)
    assert env.step(env.policy)[1:4] == (-1.0, False, True)


def test_who_judges_while_in_control_stands_still():
    """The policy is not to move what he holds: its action is neither executed nor recorded."""
    for key in "ynx":
        env = human("tw", key)
        env.step(env.policy)
        info = env.step(env.policy)[4]
        assert not env.env.actions[-1].any() and not info["intervene_action"].any()
    env = human("", "", "y").steered(leads=True)  # who records has his own standstill, and is counted by what he moved
    env.reset()
    assert "intervene_action" not in env.step(env.policy)[4]


@pytest.mark.parametrize("reported", [{}, {"succeed": False}, {"succeed": True}])
@pytest.mark.parametrize("judge, keys", [("confirm", ["", "n"]), ("overrule", ["n"])])
def test_a_classifiers_success_is_denied_whatever_the_environment_reports(judge, keys, reported):
    env = human(*keys, judge=judge)
    step = env.env.step
    env.env.step = lambda action: (*step(action)[:1], 1.0, True, False, reported | {"classifier_verdict": 1.0})
    _, reward, terminated, truncated, info = env.step(env.policy)
    assert (reward, terminated, truncated, info["succeed"]) == (0.0, False, True, False)
    assert ("success? y or n" in env.lines) == (judge == "confirm")


@pytest.mark.parametrize("wait", ["control", "pause", "question"])
def test_one_signal_ends_a_wait_for_a_key(wait):
    """Amid a step, too, where signals are put off until its end."""
    keys = {"control": ("t",), "pause": ("p",), "question": ("",)}[wait]
    env = human(*keys, judge="confirm", ends=[(1.0, True, True)])
    read = env.device.read

    def read_or_stop(timeout=0.0):
        if env.device.keys:
            return read(timeout)
        signal.raise_signal(signal.SIGTERM)
        return ""

    env.device.read = read_or_stop
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        env.step(env.policy)


def test_an_evaluation_can_be_judged_but_not_helped():
    env = human("tw", "y", steer=False)
    assert "intervene_action" not in env.step(env.policy)[4] and env.step(env.policy)[4]["succeed"] is True
    steered = human("tw", steer=False).steered()
    assert "intervene_action" in steered.step(NOTHING[:7])[4]


def test_a_terminal():
    """Keys arrive at once and unechoed, Ctrl-C stays, and afterwards the terminal is as before."""
    program = (
        "import termios, sys; from pytorch_serl.envs.human.keyboard import Terminal\n"
        "before = termios.tcgetattr(0); keys = Terminal(); print('ready', flush=True)\n"
        "print('got', repr(keys.read(timeout=20)), repr(keys.read()), flush=True); keys.close()\n"
        "print('same', termios.tcgetattr(0) == before, flush=True)"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout.readline() == "ready\n"
    os.write(ours, b"w")
    assert process.stdout.readline() == "got 'w' ''\n"
    assert process.stdout.readline() == "same True\n" and process.wait() == 0
    os.set_blocking(ours, False)
    time.sleep(0.1)
    with pytest.raises(BlockingIOError):
        os.read(ours, 10)  # nothing was echoed
    os.close(ours), os.close(theirs)


def test_without_a_terminal_it_is_refused():
    program = "from pytorch_serl.envs.human.keyboard import Terminal; Terminal()"
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT
    )
    assert "ValueError: --human keyboard reads keys from a terminal" in done.stderr


def test_caps_lock_changes_nothing_and_arrows_do_nothing():
    env = human("T", "W", "\x1b[A\x1b[D\x1bOP\x1b[1;5C", "\x1b", "[Bd", "Y")
    actions = [env.step(env.policy)[4].get("intervene_action") for _ in range(2)]
    assert [action[:2].tolist() for action in actions] == [[SPEED, 0], [0, -SPEED]]  # "Bd": the arrow's B, then d
    assert env.step(env.policy)[4]["human_verdict"] == 1.0


def test_caps_lock_at_a_question_and_in_a_pause():
    env = human("P", "P", "N", ends=[(1.0, True, True)], judge="confirm")
    assert env.step(env.policy)[4]["human_verdict"] == 0.0 and env.lines[0] == "paused; p goes on"

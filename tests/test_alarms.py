"""Alarms: each figure that must raise one and the neighbour that must not; once, and again after it was right."""

import pickle

import numpy as np
import pytest
import torch

from pytorch_serl.data.demos import read_demos
from pytorch_serl.training import build
from pytorch_serl.training.actor import UNKNOWN, recent_figures
from pytorch_serl.training.alarms import Alarms, check_numbers
from pytorch_serl.training.evaluate import Evaluation
from pytorch_serl.utils.files import load_checkpoint
from tests.runs import FIXED, LEARNED, make_demos

FINE = {
    "q_max": 1.05,
    "temperature": 0.01,
    "entropy": -3.0,
    "temperature_loss": 0.0,
    "saturation": 0.1,
    "gripper_closes": 3,
    "gripper_opens": 0,
    "idle_corrections": 0.0,
    "helped_success": 0.5,
    "false_successes": 0.1,
}


def alarms(**changes):
    return Alarms(**({"max_return": 1.0, "target_entropy": -3.5, "action_dim": 6, "commands": {-1, 0}} | changes))


@pytest.mark.parametrize(
    "name, figures",
    [
        ("q", {"q_max": 1.2}),
        ("temperature", {"temperature": 9e-4}),
        ("temperature", {"temperature": 11.0}),
        ("entropy", {"entropy": -10.0}),
        ("entropy", {"entropy": 4.0}),
        ("saturation", {"saturation": 0.6}),
        ("closes", {"gripper_closes": 0}),
        ("corrections", {"idle_corrections": 1.0}),
        ("help", {"helped_success": 0.45}),
        ("classifier", {"false_successes": 0.2}),
    ],
)
def test_one_line_each_and_again_only_after_it_was_right(name, figures, capsys):
    watch = alarms()
    assert watch.check(3000, FINE) == {} and watch.check(3000, {}) == {} and not capsys.readouterr().out
    for expected in (1, 0):
        assert watch.check(3000, FINE | figures) == {f"alarm_{name}": 1.0}
        assert capsys.readouterr().out.count("ALARM at step 3,000: ") == expected
    watch.check(3100, FINE)
    watch.check(3200, FINE | figures)
    assert capsys.readouterr().out.count("ALARM at step 3,200: ") == 1


def test_help_counts_as_success_or_not_once_there_was_enough_of_it():
    def episode(solved, helped):
        return [solved, helped, 20, 1, 1, 0.0, UNKNOWN]

    recent = [episode(1.0, 0)] * 8 + [episode(0.0, 7)] * 9
    assert "helped_success" not in recent_figures(recent)
    assert recent_figures([*recent, episode(1.0, 7)])["helped_success"] == pytest.approx(0.1)


def test_an_alarm_where_samples_are_surely_worse_than_the_mode(capsys):
    def solved(successes, episodes):
        return Evaluation(successes, episodes, [], [], {})

    assert alarms().check_sampled(500, solved(18, 20), solved(3, 4)) == {}
    assert alarms().check_sampled(500, solved(3, 20), solved(4, 4)) == {} and not capsys.readouterr().out
    watch, worse = alarms(), (solved(48, 50), solved(5, 10))
    for expected in (1, 0):  # once, until it is gone, whatever the other alarms say in between
        assert watch.check_sampled(500, *worse) == {"alarm_sampled": 1.0}
        text = "ALARM at step 500: the policy's mode solves 96%, its samples"
        assert capsys.readouterr().out.count(text) == expected
        assert watch.check(600, FINE | {"q_max": 1.2}).keys() == {"alarm_q"}
        capsys.readouterr()
    assert watch.check_sampled(700, worse[0], solved(10, 10)) == {}
    watch.check_sampled(800, *worse)
    assert capsys.readouterr().out.count("ALARM at step 800") == 1


def test_entropy_has_time_to_settle_and_the_gripper_follows_the_demos():
    assert alarms().check(1999, FINE | {"entropy": 4.0}) == {}
    cloning = {name: figure for name, figure in FINE.items() if name != "temperature_loss"}
    assert alarms().check(3000, cloning | {"entropy": 4.0}) == {}  # it is the clone's
    assert alarms(commands={-1, 1}).check(0, FINE) == {"alarm_opens": 1.0}
    assert alarms(commands=set()).check(0, FINE | {"gripper_closes": 0}) == {}


def test_of_two_grippers_only_what_both_are_given_is_missed(tmp_path):
    path = make_demos(tmp_path / "demos.pkl", gripper=True, action_dim=14)
    transitions = pickle.loads(path.read_bytes())
    for i, transition in enumerate(transitions):
        transition["actions"][[6, 13]] = (-1, 1)[i % 2], -1  # the right one never opens
    path.write_bytes(pickle.dumps(transitions))
    demos = read_demos(path, "image", "dual-arm-learned-gripper")
    agent = build.make_agent(demos, lr=1e-3, discount=0.9, device=torch.device("cpu"), backbone=None, trainable=False)
    assert build.make_alarms(demos, agent).commands == {-1}


@pytest.mark.parametrize("mode", [FIXED, LEARNED])
def test_limits_come_from_the_demos(mode, tmp_path):
    gripper = mode == LEARNED
    path = make_demos(tmp_path / "demos.pkl", gripper=gripper, action_dim=6 + gripper)
    demos = read_demos(path, "image", mode)
    agent = build.make_agent(demos, lr=1e-3, discount=0.9, device=torch.device("cpu"), backbone=None, trainable=False)
    watch = build.make_alarms(demos, agent)
    assert watch.max_return == 1.0 and watch.commands == ({-1, 0, 1} if gripper else set())
    for transition in demos.transitions:
        transition["rewards"] = 2.0
    assert build.make_alarms(demos, agent).max_return == pytest.approx(20.0)  # 2 / (1 - discount)


def test_a_figure_that_is_no_number_saves_the_batch(tmp_path):
    batches = [{"actions": torch.ones(2, 3)}]
    check_numbers({"q": torch.tensor(1.0), "loss": 2.0}, batches, tmp_path, "update 1")
    assert not list(tmp_path.iterdir())
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(FloatingPointError, match=r"update 2: \{'q': (nan|inf)\}; the batch is in"):
            check_numbers({"q": torch.tensor(wrong), "loss": 2.0}, batches, tmp_path, "update 2")
        saved = load_checkpoint(tmp_path / "nan_batch.pt")
        assert np.array_equal(saved["batches"][0]["actions"], np.ones((2, 3))) and saved["place"] == "update 2"

"""What rewards mean; what is odd in demos: scale, drift, what hangs, ends that belong elsewhere; homes and names."""

import os
import pickle
import pwd
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pytorch_serl.data.demos import DataError, read_demos
from pytorch_serl.data.rewards import reward_kind
from pytorch_serl.training import backbone, build
from pytorch_serl.utils.output import print_anything
from tests.runs import FIXED, LEARNED, ROOT, make_demos

LENGTH = 6


def changed(tmp_path, edit=None, episodes=6, mode=FIXED, **options):
    """Demos of 6 episodes of 6 steps, after `edit(transitions)`."""
    path = tmp_path / "demos.pkl"
    make_demos(path, episodes=episodes, length=LENGTH, size=16, **options)
    transitions = pickle.loads(path.read_bytes())
    if edit is not None:
        edit(transitions)
    path.write_bytes(pickle.dumps(transitions))
    return read_demos(path, "image", mode)


def rewarded(rewards, masks_end=None):
    """An edit: rewards of each episode's steps and, where given, the mask at each episode's end."""

    def edit(transitions):
        for i, transition in enumerate(transitions):
            episode, step = divmod(i, LENGTH)
            values = rewards[episode % len(rewards)]
            transition["rewards"] = float(values[step])
            if masks_end is not None and step == LENGTH - 1:
                transition["masks"] = float(masks_end[episode % len(masks_end)])

    return edit


def steps(each, end):
    return [each] * (LENGTH - 1) + [end]


KINDS = {  # name: (rewards by episode, masks at their ends, successes of 6, in the warnings, not in the warnings)
    "zero and one": ([steps(0, 1)], [0], 6, [], ["success", "masks"]),
    "a failed one": ([steps(0, 1), steps(0, 0)], [0, 1], 3, ["3 of 6 (50.0%) episodes without success"], ["masks"]),
    "ten": ([steps(0, 10)], [0], 6, ["rewards: 0 to 10"], ["masks", "without success"]),
    "minus one a step": ([steps(-1, 0)], [0], 6, [], ["rewards:", "masks"]),
    "minus one, half fail": ([steps(-1, 0), steps(-1, -1)], [0, 1], 3, ["3 of 6 (50.0%) episodes w"], ["masks"]),
    "minus one, failures terminal": (
        [steps(-1, 0), steps(-1, -1)],
        [0, 0],
        3,
        ["masks: 3 episodes end without success as terminal"],
        [],
    ),
    "small costs": ([steps(-0.01, 1), steps(-0.01, -0.01)], [0, 1], 3, ["3 of 6"], ["masks"]),
    "failures punished": ([steps(0, 1), steps(0, -1)], [0, 0], 3, ["3 of 6"], ["masks"]),
    "minus one throughout": (
        [steps(-1, -1)],
        [0, 1],
        3,
        ["rewards: -1 a step, none above it; success is an episode that ends (mask 0)", "3 of 6"],
        ["masks"],
    ),
    "until the time limit": ([[-1, -1, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0]], [1], 6, [], ["without success"]),
    "shaped": (
        [[-0.9, -0.71, -0.52, -0.33, -0.24, -0.05], [-0.9, -0.8, -0.72, -0.6, -0.65, -0.7]],
        [0, 1],
        3,
        ["rewards: shaped, -0.9 to -0.05", "3 of 6"],
        ["masks"],
    ),
    "shaped and a bonus": (
        [[0.1, 0.15, 0.22, 0.31, 0.44, 5], [0.1, 0.16, 0.2, 0.3, 0.4, 5]],
        [0],
        6,
        ["shaped, 0.1 to 5", "0.1 to 5; the"],
        ["masks"],
    ),
    "punished alone": ([steps(0, -1), steps(0, 0)], [0, 1], 0, ["no success can be told"], []),
}


@pytest.mark.parametrize("name", KINDS)
def test_rewards_of_every_kind(name, tmp_path):
    rewards, masks, successes, there, absent = KINDS[name]
    demos = changed(tmp_path, rewarded(rewards, masks))
    warnings = "\n".join(demos.warnings)
    assert f"36 transitions, {successes} successful" in demos.summary(), demos.summary()
    for text in there:
        assert text in warnings, warnings
    for text in absent:
        assert text not in warnings, warnings


@pytest.mark.parametrize("rewards, masks", [([steps(0, 0)], [1]), ([steps(0, -1)], [0]), ([steps(-1, -1)], [1])])
def test_failures_want_the_successes_beside_them(rewards, masks, tmp_path):
    """What record_demos.py --keep_failures writes, given alone."""
    alone = tmp_path / "failed_demos.pkl"
    transitions = pickle.loads(make_demos(alone, length=LENGTH, size=16).read_bytes())
    rewarded(rewards, masks)(transitions)
    alone.write_bytes(pickle.dumps(transitions))

    def said(*paths):
        try:
            return "\n".join(read_demos(paths, "image", FIXED).warnings)
        except DataError as error:
            assert not any(map(any, rewards)), "only where nothing at all is rewarded"
            return str(error)

    text = said(alone)
    assert "all 6 episodes failed" in text and "give the file with the successes as well" in text
    assert "--demo_paths demos.pkl failed_demos.pkl" in text
    changed(tmp_path)
    assert f"--demo_paths {tmp_path / 'demos.pkl'} {alone};" in said(alone)
    for both in ((tmp_path / "demos.pkl", alone), (alone, tmp_path / "demos.pkl")):
        text = said(*both)
        assert "failed" not in text.replace("failed_demos.pkl", "") and "no success can be told" not in text
        assert "6 of 6 (100.0%) episodes without success" in text


def test_files_with_rewards_of_two_kinds(tmp_path):
    (tmp_path / "one").mkdir()
    changed(tmp_path, rewarded([steps(-1, 0)]))
    changed(tmp_path / "one")
    paths = [tmp_path / "one" / "demos.pkl", tmp_path / "demos.pkl"]
    warnings = read_demos(paths, "image", FIXED).warnings
    text = f"{paths[1]}: rewards: -1 a step, 0 at success; in {paths[0]}: 0 a step, 1 at success; one scale"
    assert any(text in line for line in warnings), warnings


def test_one_step_episodes_and_kept_success_frames():
    last = np.ones(4, bool)
    assert reward_kind(np.array([0.0, 1, 1, 1]), last).ordinary == 0
    kind = reward_kind(np.array([1.0, 1, 1, 0, 1]), np.array([False, False, True, False, True]))
    assert kind.ordinary == 0 and kind.reached(np.array([1.0, 1, 1]), False)


@pytest.mark.parametrize(
    "rewards, highest, alarm_above",
    [
        (steps(-1, 0), 0.0, 1.0),  # returns of -10 to 0
        (steps(0, 10), 10.0, 11.0),
        (steps(-0.1, 1), 1.0, 1.2),
        (steps(2, 2), 20.0, 22.0),
        (steps(-1, -1), -1.0, 0.0),
    ],
)
def test_the_alarm_on_q_knows_the_rewards(rewards, highest, alarm_above, tmp_path):
    demos = changed(tmp_path, rewarded([rewards], [0]))
    agent = build.make_agent(demos, lr=1e-3, discount=0.9, device=torch.device("cpu"), backbone=None, trainable=False)
    watch = build.make_alarms(demos, agent)
    assert watch.max_return == pytest.approx(highest)
    assert watch.check(1, {"q_max": alarm_above - 0.01}) == {}
    assert watch.check(2, {"q_max": alarm_above + 0.01}) == {"alarm_q": 1.0}


# ---------------------------------------------------------------- scale


def each(change):
    def edit(transitions):
        for i, transition in enumerate(transitions):
            change(i, transition)

    return edit


def metres(_, transition):
    transition["actions"] *= 0.02


def one_small(_, transition):
    transition["actions"][3] *= 1e-4


def drift(i, transition):
    if i % 2:
        transition["actions"][:] = 1e-4 * (1 + np.arange(6)) * (-1) ** i


def drift_in_metres(i, transition):
    transition["actions"] *= 1e-4 if i % 2 else 0.02


def resting(i, transition):
    if i // LENGTH == 2:
        transition["actions"] *= 1e-4


def counts(_, transition):
    for name in ("observations", "next_observations"):
        transition[name]["state"] = transition[name]["state"] * 1e4


def constant(_, transition):
    for name in ("observations", "next_observations"):
        transition[name]["state"] = np.array([0.1, 0.2, 0.3], np.float32)


def reset_by_itself(transitions):
    for i in range(LENGTH - 1, len(transitions) - 1, LENGTH):
        transitions[i]["next_observations"] = transitions[i + 1]["observations"]
        transitions[i].update(rewards=0.0 if i > LENGTH else 1.0, masks=float(i > LENGTH))


def frozen(*episodes, key="image", first=1, black=False):
    """The camera stops at step `first` of these episodes, or goes black there."""

    def edit(transitions):
        for episode in episodes:
            rows = transitions[episode * LENGTH : (episode + 1) * LENGTH]
            still = rows[first]["observations"][key] * (not black)
            for step, transition in enumerate(rows):
                if step >= first:
                    transition["observations"] = transition["observations"] | {key: still}
                if step >= first - 1:
                    transition["next_observations"] = transition["next_observations"] | {key: still}

    return edit


def faint(i, transition):
    if i >= 30:
        transition["observations"]["image"] = transition["observations"]["image"] % 7


def held(transitions):
    """Success is held for three steps in four episodes, and terminal in the last of them."""
    for i, transition in enumerate(transitions[: 4 * LENGTH]):
        transition.update(rewards=float(i % LENGTH >= 3), masks=float(i % LENGTH < 5))
    for transition in transitions[4 * LENGTH :]:
        transition.update(rewards=0.0, masks=1.0)


ODD = {
    "success held": (held, ["8 of 12 (66.7%) rewards of success come before the last", "(first: transition 3)"]),
    "metres": (each(metres), ["no continuous entry is above 0.01"]),
    "one small entry": (
        each(one_small),
        ["actions[3] within ", "others reach 0.", "another unit, or a device's drift"],
    ),
    "drift": (each(drift), ["18 of 36 (50.0%) are no-ops (all within 0.0006: a device's drift)"]),
    "drift in metres": (each(drift_in_metres), ["18 of 36 (50.0%) are no-ops (all within ", "of the 1 it may have"]),
    "an episode at rest": (each(resting), ["nothing but no-ops in episode 2; leave them out"]),
    "counts": (each(counts), ["3 of 3 entries go beyond 100 (state[", "encoder counts, millimetres or degrees?"]),
    "constant state": (each(constant), ["observations['state']: never changes in 36 observations"]),
    "the next episode's": (
        reset_by_itself,
        ["next_observations at 5 of 5 (100.0%) episode ends (first: transition 5) are the next", "4 of them are time"],
    ),
    "five frozen": (
        frozen(0, 1, 2, 3, 4),
        [
            "observations['image']: the same images while the actions move in 5 of 6 (83.3%) episodes",
            "episode 4: 5 of 6 steps, from transition 25 on",
        ],
    ),
    "one frozen from the start": (frozen(3, first=0), ["1 of 6", "episode 3: 6 of 6 steps, from transition 18 on"]),
    "at the end": (frozen(5, first=3), ["episode 5: 3 of 6 steps, from transition 33 on"]),
    "black": (frozen(1, black=True), ["episode 1: 5 of 6 steps", "5 of 36 (13.9%) images are blank"]),
    "almost black": (each(faint), ["6 of 36 (16.7%) images are almost blank", "first: transition 30"]),
    "a state that stops": (
        frozen(2, key="state"),
        ["observations['state']: the same state while the actions move in 1 of 6", "episode 2: 5 of 6 steps"],
    ),
}


def test_two_cameras_that_are_one_and_a_state_by_another_name(tmp_path):
    good = changed(tmp_path)
    for transition in good.transitions:
        for name in ("observations", "next_observations"):
            obs = transition[name]
            transition[name] = {"image": obs["image"], "wrist": obs["image"].copy(), "joint_pos": obs["state"]}
    (tmp_path / "demos.pkl").write_bytes(pickle.dumps(good.transitions))
    warnings = "\n".join(read_demos(tmp_path / "demos.pkl", ["image", "wrist"], FIXED).warnings)
    assert "cameras 'image' and 'wrist' give the same pictures" in warnings
    assert "no 'state', and 'joint_pos' (3,) is not read" in warnings
    assert not any("same pictures" in text or "not read" in text for text in good.warnings)


@pytest.mark.parametrize("name", ODD)
def test_oddities_with_numbers(name, tmp_path):
    edit, texts = ODD[name]
    warnings = "\n".join(changed(tmp_path, edit).warnings)
    for text in texts:
        assert text in warnings, warnings


def still_arm(transitions):
    """Nobody moves, and a gripper closes: the same frames are right."""
    for transition in transitions[:LENGTH]:
        transition["actions"][:6] = 0


def slow_camera(transitions):
    for i in range(0, len(transitions), 2):
        transitions[i + 1]["observations"]["image"] = transitions[i]["observations"]["image"]
        transitions[i]["next_observations"]["image"] = transitions[i]["observations"]["image"]


@pytest.mark.parametrize("edits", [(), (still_arm, frozen(0)), (slow_camera,), (frozen(1, first=5),)])
def test_what_is_right_is_not_called_hanging(edits, tmp_path):
    def edit(transitions):
        for change in edits:
            change(transitions)

    demos = changed(tmp_path, edit, mode=LEARNED, gripper=True, action_dim=7)
    assert not any("while the actions move" in text for text in demos.warnings), demos.warnings


def grasping(commands, penalties):
    """An edit: the gripper's commands and penalties in each episode."""

    def edit(transitions):
        for i, transition in enumerate(transitions):
            transition["actions"][-1] = commands[i % LENGTH]
            transition["grasp_penalty"] = -0.02 * penalties[i % LENGTH]

    return edit


GRASPS = {  # commands and penalties of an episode, what is said of them
    "right": ((0, -1, 0, 1, -1, 0), (0, 1, 0, 1, 1, 0), None),
    "slow fingers": ((0, -1, -1, 1, 0, 0), (0, 1, 1, 1, 0, 0), None),  # HIL-SERL's, penalised until they are closed
    "swapped": ((0, 1, 0, -1, 1, 0), (0, 1, 0, 1, 1, 0), "in 6 of 6 (100.0%) episodes the gripper's first change is"),
    "a position": ((1, 1, 1, -1, -1, -1), (0, 0, 0, 1, 0, 0), None),  # the command in force, which is what is imitated
    "a position, swapped": ((-1, -1, -1, 1, 1, 1), (0, 0, 0, 1, 0, 0), "if it was open, the labels are swapped"),
    "elsewhere": ((0, -1, 0, 1, 0, 0), (1, 0, 1, 0, 0, 1), "18 of 18 (100.0%) penalties are at steps without a grip"),
    "none for changes": ((-1, 0, 1, 0, -1, 0), (1, 0, 0, 0, 0, 0), "12 of 12 (100.0%) commands that turn the gripper"),
}


@pytest.mark.parametrize("name", GRASPS)
def test_grippers_whose_labels_or_penalties_are_wrong(name, tmp_path):
    commands, penalties, text = GRASPS[name]
    demos = changed(tmp_path, grasping(commands, penalties), mode=LEARNED, gripper=True, action_dim=7)
    said = [line for line in demos.warnings if "gripper" in line or "grasp_penalty" in line]
    assert (text in "\n".join(said)) if text else not said, demos.warnings


# ---------------------------------------------------------------- homes and names


@pytest.fixture
def no_home(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)

    def unknown(_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_without_a_home_the_published_backbone_is_not_there(no_home, tmp_path):
    resnet, line = backbone.find_backbone(own=tmp_path / "absent.pt")
    assert resnet is not None and line.startswith("backbone: the shipped one")
    assert "~/.serl/resnet10_params.pkl cannot be read and counts as not there" in line
    for ask in ({"path": "~/x.pkl"}, {"download": True}):
        with pytest.raises(ValueError, match="set HOME"):
            backbone.find_backbone(**ask)


def test_a_home_that_may_not_be_entered(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "PUBLISHED_PATH", tmp_path / "shut" / "resnet10_params.pkl")
    is_file = Path.is_file

    def shut(path):
        if "shut" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", shut)
    backbone.save_backbone(tmp_path / "own.pt", backbone.ResNet10(), "own frames")
    resnet, line = backbone.find_backbone(own=tmp_path / "own.pt")
    assert resnet is not None and line.startswith("backbone: own frames")
    assert "resnet10_params.pkl cannot be read and counts as not there (Permission denied)" in line
    resnet, line = backbone.find_backbone(own=tmp_path / "shut" / "own.pt")
    assert line.startswith("backbone: the shipped one") and line.count("counts as not there") == 2


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_folder_name_that_cannot_be_printed(encoding, tmp_path):
    """Bytes that are no text, and letters that the terminal lacks."""
    folder = os.fsencode(tmp_path) + b"/d\xc3\xa9mos \xff \xe2\x82\xac"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes no such name")
    make_demos(Path(os.fsdecode(folder)) / "demos.pkl", episodes=6, length=2)
    words = ["train_offline.py", "--demo_paths", folder + b"/demos.pkl", "--image_keys", "image", "--save_dir"]
    words += [folder + b"/run", "--setup_mode", FIXED, "--max_steps", "1", "--eval_every", "1", "--batch_size", "4"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, timeout=300)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    assert {"last.pt", "settings.json"} <= set(os.listdir(os.fsdecode(folder + b"/run")))


def test_printing_without_an_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_anything()
    sys.stdout.write("nobody reads this")
    sys.stdout.close()

"""record_demos.py: what it writes, killed and resumed recordings, refusals, foreign environments."""

import os
import pickle
import re
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import record_demos
import train_classifier
import train_hybrid
from pytorch_serl.data.demos import read_demos
from pytorch_serl.data.episode_files import episode_files, read_episode
from pytorch_serl.data.frames import read_classifier_frames
from pytorch_serl.envs.tabletop import task
from pytorch_serl.training import recording
from pytorch_serl.training.robot import Robot
from tests.runs import FIXED, LEARNED, ROOT, command, make_demos, record, refused
from tests.tiny_env import TinyEnv

SMALL = {"env_args": "image_size=16"}


@pytest.mark.parametrize("mode", task.SETUP_MODES)
def test_recorded_files(mode, tmp_path):
    record(mode, tmp_path, num_demos=3, num_classifier_episodes=4, seed=1, **SMALL)
    demos = pickle.loads((tmp_path / "demos.pkl").read_bytes())
    keys = {*task.TabletopEnv(mode).image_keys, "state"}
    learned = mode.endswith("learned-gripper")
    assert sum(t["rewards"] for t in demos) == 3 and {t["scene"] for t in demos} == {0, 1, 2}
    for i, t in enumerate(demos):
        assert set(t["observations"]) == set(t["next_observations"]) == keys
        assert t["observations"]["image"].dtype == np.uint8 and t["actions"].dtype == np.float32
        assert isinstance(t["dones"], bool) and isinstance(t["grasp_penalty"], float)
        assert t["masks"] == 1.0 - t["dones"] and t["rewards"] == float(t["dones"])
        if not t["dones"]:  # one frame, stored once
            assert all(t["next_observations"][k] is demos[i + 1]["observations"][k] for k in keys)
    gripper = sum(t["grasp_penalty"] for t in demos)
    assert (gripper < 0) == learned
    for name, label in (("success", 1), ("failure", 0)):
        files = sorted((tmp_path / name).glob("*.pkl"))
        frames = [frame for path in files for frame in pickle.loads(path.read_bytes())]
        assert len(files) == 4 + 3 and len(frames) > 16  # 3 of them from the demos
        assert all(frame["labels"] == label and set(frame["observations"]) == keys for frame in frames)
        assert all(len({frame["scene"] for frame in pickle.loads(path.read_bytes())}) == 1 for path in files)
        heights = [frame["observations"]["state"].reshape(-1, 8 if learned else 6) for frame in frames]
        done = [
            bool(((h[:, 2] >= 0) & (h[:, 7] == 1)).all() if learned else (h[:, 2] <= -0.947).all()) for h in heights
        ]  # 0: z of 8 cm; -0.947: 2.5 cm deep
        assert all(d == bool(label) for d in done)
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "scratch").exists()
    for picture, rows in ((recording.CAMERAS_PICTURE, len(keys) - 1), (recording.DEMOS_PICTURE, 3)):
        assert Image.open(tmp_path / picture).height > 90 * rows
    read_classifier_frames(tmp_path / "success", tmp_path / "failure", ["image"])


def test_recording_is_reproducible_and_guarded(tmp_path, capsys):
    options = {"num_demos": 1, "num_classifier_episodes": 1, "image_keys": ["wrist"]} | SMALL
    first, second = (record(LEARNED, tmp_path / name, **options).read_bytes() for name in ("a", "b"))
    assert first == second and set(pickle.loads(first)[0]["observations"]) == {"wrist", "state"}
    line = command({"output_dir": tmp_path / "a"} | options)
    capsys.readouterr()
    refused(record_demos, capsys, "overwrite", line)
    assert record(LEARNED, tmp_path / "a", seed=1, overwrite=True, **options).read_bytes() != first
    capsys.readouterr()
    refused(record_demos, capsys, "wrist_left", command({"output_dir": tmp_path / "c", "image_keys": "wrist_left"}))
    assert not (tmp_path / "c" / "demos.pkl").exists()


def test_a_killed_recording_goes_on_where_it_was(tmp_path):
    """Episodes are those of a recording in one piece, bit for bit; what a kill cut short is recorded anew."""
    whole = record(FIXED, tmp_path / "whole", num_demos=4, num_classifier_episodes=0, **SMALL)
    cut = tmp_path / "cut"
    record(FIXED, cut, num_demos=3, num_classifier_episodes=0, **SMALL)
    last = cut / "episodes/000002.pkl.gz"
    last.write_bytes(last.read_bytes()[:-100])  # killed in its last step
    (cut / "demos.pkl").unlink()
    again = record(FIXED, cut, num_demos=4, num_classifier_episodes=0, resume=True, **SMALL)
    assert again.read_bytes() == whole.read_bytes()


class Failing(gym.Wrapper):
    """Every other episode of its expert ends without success."""

    episodes = 0

    def reset(self, **options):
        self.episodes += 1
        return self.env.reset(**options)

    def step(self, action):
        return self.env.step(action if self.episodes % 2 else np.zeros_like(action))


def test_failures_are_counted_although_they_are_not_kept(tmp_path, monkeypatch, capsys):
    make = record_demos.build.make_env
    monkeypatch.setattr(record_demos.build, "make_env", lambda *args: Robot(Failing(make(*args).env)))
    record(FIXED, tmp_path, num_demos=2, num_classifier_episodes=0, **SMALL)
    assert re.search(r"failed=[1-9]", capsys.readouterr().err) and len(episode_files(tmp_path)) == 2


def test_failures_are_kept_apart(tmp_path, monkeypatch):
    make = record_demos.build.make_env
    monkeypatch.setattr(record_demos.build, "make_env", lambda *args: Robot(Failing(make(*args).env)))
    path = record(FIXED, tmp_path, num_demos=2, num_classifier_episodes=0, keep_failures=True, **SMALL)
    good, bad = read_demos(path, "image", FIXED), pickle.loads((tmp_path / "failed_demos.pkl").read_bytes())
    assert len(np.unique(good.episode_ids)) == 2 and sum(t["rewards"] for t in good.transitions) == 2
    assert bad and not any(t["rewards"] for t in bad)
    both = read_demos([path, tmp_path / "failed_demos.pkl"], "image", FIXED)
    assert len(both.transitions) == len(good.transitions) + len(bad)


class Resting(gym.Wrapper):
    """Its first recorded episode ends at once, before anything has moved, and is called a success or not."""

    def __init__(self, env, solved):
        super().__init__(env)
        self.solved = solved

    def reset(self, *, seed=None, options=None):
        self.rests = seed == recording.RECORD_SEED
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action * (not self.rests))
        if not self.rests:
            return obs, reward, terminated, truncated, info
        info |= {"succeed": self.solved, "intervene_action": 0 * action}
        return obs, float(self.solved), self.solved, not self.solved, info


@pytest.mark.parametrize("solved", [True, False])
def test_an_episode_in_which_nothing_moved_is_thrown_away_and_an_old_one_healed(solved, tmp_path, monkeypatch, capsys):
    make = record_demos.build.make_env
    monkeypatch.setattr(record_demos.build, "make_env", lambda *args: Robot(Resting(make(*args).env, solved)))
    options = {"num_demos": 1, "num_classifier_episodes": 0, "keep_failures": True} | SMALL
    with monkeypatch.context() as before, suppress(SystemExit):  # as it was recorded once
        before.setattr(recording, "_moves", lambda step: True)
        record(FIXED, tmp_path, **options)
    with pytest.raises(ValueError, match="0 in every entry"):
        read_demos(tmp_path / (recording.DEMOS if solved else recording.FAILED), "image", FIXED)
    assert read_demos(record(FIXED, tmp_path, resume=True, **options), "image", FIXED).transitions
    assert not (tmp_path / recording.FAILED).exists()
    capsys.readouterr()
    fresh = record(FIXED, tmp_path / "fresh", **options)
    assert capsys.readouterr().out.count("nothing was moved in this episode: thrown away") == 1
    assert read_demos(fresh, "image", FIXED).transitions and len(list((tmp_path / "fresh/episodes").iterdir())) == 1


def test_a_rate_that_is_kept_is_no_slow_environment():
    env = Robot(TinyEnv(), control_hz=20)
    _, line = recording.check_rate(env, 0, 20)
    assert "WARNING" not in line and "step takes 50 ms" not in line


class Timed(Robot):
    """Takes as long for each step as told, in ms."""

    def step(self, action):
        result = self.env.step(action)
        self.took = self.times.pop(0) / 1000
        return result


@pytest.mark.parametrize(
    "times, says",
    [
        ([97, 102, 109, 97, 98], ["a step takes 98 ms, the slowest of 5 109 ms"]),  # keeps 10 Hz itself, as FakeArm
        ([97, 130, 97, 125, 98], ["the slowest of 5 130 ms", "2 of 5 steps took more than a tenth longer"]),
    ],
)
def test_the_check_of_the_rate_says_which_steps_come_late(times, says, monkeypatch):
    env = Timed(TinyEnv())
    env.times = list(times)
    monkeypatch.setattr(recording, "CHECK_STEPS", len(times))
    _, line = recording.check_rate(env, 0, 10)
    assert all(words in line for words in says) and ("WARNING" in line) == (len(says) > 1)


def test_check_writes_the_cameras_and_nothing_else(tmp_path, capsys):
    record_demos.main(command({"output_dir": tmp_path, "check": True, "control_hz": 10_000.0} | SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["cameras.png"]
    assert "longer than the period of --control_hz" in capsys.readouterr().out


def test_the_network_sees_what_the_picture_shows():
    import torch

    from pytorch_serl.networks.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet10

    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    seen = ResNet10().preprocess(torch.from_numpy(image)[None])[0].permute(1, 2, 0).numpy()
    pixels = 255 * (seen * IMAGENET_STD + IMAGENET_MEAN)
    assert np.abs(recording.seen_by_network(image) - pixels).max() <= 0.51


class Odd(gym.Env):
    """An environment whose spaces are given."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


BOX, CAMERA = gym.spaces.Box(-1, 1, (7,)), gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "observations, actions, message",
    [
        (CAMERA, BOX, "wanted a gymnasium.spaces.Dict"),
        (gym.spaces.Dict({"state": BOX}), BOX, "no camera"),
        (gym.spaces.Dict({"image": gym.spaces.Box(0, 1, (8, 8, 3))}), BOX, "gives float32"),
        (gym.spaces.Dict({"image": gym.spaces.Box(0, 255, (3, 8, 8), np.uint8)}), BOX, r"wanted uint8 \(H, W, 3\)"),
        (gym.spaces.Dict({"image": CAMERA}), gym.spaces.Box(-2, 2, (7,)), "wanted -1 to 1"),
        (gym.spaces.Dict({"image": CAMERA}), gym.spaces.MultiDiscrete([3] * 7), "wanted a gymnasium.spaces.Box"),
        (gym.spaces.Dict({"front.rgb": CAMERA}), BOX, "rename the camera"),
    ],
)
def test_an_environment_that_breaks_the_contract_is_named(observations, actions, message):
    with pytest.raises(ValueError, match=message):
        recording.check_spaces(Odd(observations, actions), None, LEARNED)
    good = Odd(gym.spaces.Dict({"image": CAMERA}), BOX)
    assert recording.check_spaces(good, None, LEARNED) == ["image"]
    with pytest.raises(ValueError, match="2 equal blocks"):
        recording.check_spaces(good, None, "dual-arm-learned-gripper")


def test_a_state_by_another_name_is_said(capsys):
    recording.check_spaces(Odd(gym.spaces.Dict({"image": CAMERA, "agent_pos": BOX}), BOX), None, LEARNED)
    assert "no 'state', and 'agent_pos' (7,) is not read" in capsys.readouterr().out


class Stuck(TinyEnv):
    """Its limit is an attribute alone; its fifth reset's episode loses the robot; an unused camera gives anything."""

    max_episode_steps, episodes = 5, 0

    def __init__(self):
        super().__init__()
        debug = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({**self.observation_space.spaces, "debug": debug})

    def scripted_expert(self, noise, seed):
        return SimpleNamespace(act=lambda: np.full(self.action_space.shape, 0.5, np.float32), steps_to_go=lambda: 1)

    def reset(self, *, seed=None, options=None):
        self.steps, self.episodes = 0, self.episodes + 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.episodes == 5 and self.steps == 3:
            raise TimeoutError("no answer from the robot")
        obs, *_, info = super().step(action)
        return obs | {"debug": np.zeros(self.steps, np.uint8)}, 0.0, False, False, info


def test_a_recording_ends_where_the_environment_says_and_names_what_is_safe(tmp_path, capsys):
    gym.register("Stuck-v0", entry_point=Stuck, disable_env_checker=True)
    options = {"env": "Stuck-v0", "setup_mode": FIXED, "image_keys": "image", "human": "scripted", "num_demos": 9}
    with pytest.raises(SystemExit):
        record_demos.main([*command(options | {"output_dir": tmp_path}), "--keep_failures"])
    err = capsys.readouterr().err
    assert "no answer from the robot" in err and f"what was recorded is in {tmp_path}; the same command" in err
    assert [len(read_episode(path)) for path in episode_files(tmp_path).values()][:2] == [5, 5]


def test_the_command_line(tmp_path):
    arguments = (
        "--setup_mode single-arm-fixed-gripper --num_demos 1 --num_classifier_episodes 1 --env_args image_size=16"
    )
    call = [sys.executable, str(ROOT / "record_demos.py"), *arguments.split(), "--output_dir", str(tmp_path)]
    first = subprocess.run(call, capture_output=True, text=True, check=False)
    assert first.returncode == 0 and "1 successful" in first.stdout and "next: python train_hybrid.py" in first.stdout
    again = subprocess.run(call, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "--overwrite" in again.stderr


@pytest.mark.parametrize(
    "name, run, classifier",
    [("data", "hybrid_ckpt", "classifier_ckpt"), ("my arm", "runs/my arm", "runs/my arm_classifier")],
)
def test_the_commands_to_go_on_with_can_be_typed(name, run, classifier, tmp_path, monkeypatch):
    """Words with spaces, how the device is held, who judged; a run of its own beside that of other recordings."""
    monkeypatch.chdir(tmp_path)
    recorded = {
        "env": "a:B-v0",
        "env_args": ["path=x y"],
        "setup_mode": FIXED,
        "control_hz": 12.5,
        "human": "spacemouse",
    }
    args = record_demos.parse_args(command(recorded | {"output_dir": name, "axis_signs": [-1, -1, 1, -1, -1, 1]}))
    args.reward = "human"
    keys = ["front", "left wrist"]
    words = shlex.split(record_demos.train_hybrid_line(args, Path(name), keys))
    assert words[:2] == ["python", "train_hybrid.py"] and "--dead_zone" not in words
    asked = train_hybrid.parse_args(words[2:])
    assert {key: getattr(asked, key) for key in recorded} == recorded
    assert asked.demo_paths == [f"{name}/demos.pkl"] and asked.image_keys == keys and asked.reward == "human"
    assert asked.axis_signs == [-1, -1, 1, -1, -1, 1] and Path(asked.save_dir) == Path(run)
    words = shlex.split(record_demos.train_classifier_line(Path(name), keys))
    asked = train_classifier.parse_args(words[2:])
    assert (asked.success_dir, asked.failure_dir) == (f"{name}/success", f"{name}/failure")
    assert asked.image_keys == keys and Path(asked.output_dir) == Path(classifier)


@pytest.mark.parametrize("human, hard", [("keyboard", False), ("scripted", True)])
def test_frames_that_a_human_labelled_have_no_last_ones_before_a_success(human, hard, capsys):
    args = record_demos.parse_args(command({"classifier_only": True, "human": human}))
    record_demos.report(args, Path("data"), {}, ["image"], np.array([5, 3]))
    said = capsys.readouterr().out
    assert "classifier frames: 5 success, 3 failure" in said and ("hard failures" in said) == hard


@pytest.mark.parametrize("cost, human, said", [(1, "keyboard", True), (0, "keyboard", False), (1, "scripted", False)])
def test_a_verdict_beside_other_rewards_is_said(cost, human, said, tmp_path, monkeypatch, capsys):
    make_demos(tmp_path / "demos.pkl")
    transitions = pickle.loads((tmp_path / "demos.pkl").read_bytes())
    for transition in transitions:
        transition["rewards"] = transition["rewards"] or float(-cost)
    (tmp_path / "demos.pkl").write_bytes(pickle.dumps(transitions))
    monkeypatch.setattr(recording, "demos_picture", lambda *arguments: None)
    args = record_demos.parse_args(command({"human": human, "setup_mode": FIXED, "env": "MyArm-v0"}))
    args.reward = "env"
    record_demos.report(args, tmp_path, {0: True}, ["image"], np.zeros(2))
    assert ("one critic cannot learn two scales" in capsys.readouterr().out) == said


class Silent(TinyEnv):
    def __init__(self):
        super().__init__(report_success=False)


@pytest.mark.parametrize("kind, verdict", [(TinyEnv, True), (Silent, False)])
def test_a_robot_knows_whether_it_is_told_of_success(kind, verdict):
    env = Robot(kind())
    env.probe(verdict=False)
    assert env.verdict == verdict


def test_a_look_at_the_cameras_is_no_recording(tmp_path):
    record_demos.main(command({"output_dir": tmp_path, "check": True} | SMALL))
    assert record(FIXED, tmp_path, num_demos=1, num_classifier_episodes=0, **SMALL).exists()


def test_an_episode_in_which_nobody_steers_ends_the_recording(tmp_path, capsys):
    options = {"env": "examples.fake_arm:FakeArm-v0", "env_args": "hz=0", "setup_mode": FIXED, "human": "env"}
    refused_at_the_end = command(options | {"output_dir": tmp_path})
    with pytest.raises(SystemExit) as error:
        record_demos.main(refused_at_the_end)
    assert error.value.code == 2 and "nobody steered" in capsys.readouterr().err
    assert not (tmp_path / "demos.pkl").exists()


def test_overwrite_replaces_the_recording_once_all_else_is_right_and_nothing_else(tmp_path, capsys):
    options = {"output_dir": tmp_path, "num_demos": 1, "num_classifier_episodes": 1} | SMALL
    record_demos.main(command(options))
    (tmp_path / "success/mine.pkl").write_bytes(b"mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    refused(record_demos, capsys, "cannot be made", command(options | {"env": "nowhere:Gone-v0", "overwrite": True}))
    assert all(path.read_bytes() == content for path, content in before.items())
    record_demos.main(command(options | {"overwrite": True, "classifier_only": True, "num_classifier_episodes": 2}))
    names = {path.name for path in (tmp_path / "success").iterdir()}
    assert names == {"mine.pkl", "episode_000.pkl", "episode_001.pkl"}  # demo_000.pkl was of the frames before
    assert (tmp_path / "demos.pkl").read_bytes() == before[tmp_path / "demos.pkl"]
    record_demos.main(command(options | {"overwrite": True, "seed": 1, "num_classifier_episodes": 0}))
    assert (tmp_path / "demos.pkl").read_bytes() != before[tmp_path / "demos.pkl"]
    assert [path.name for path in (tmp_path / "success").iterdir()] == ["mine.pkl"]
    assert not any((tmp_path / "failure").iterdir()) and len(list((tmp_path / "episodes").iterdir())) == 1


def test_resume_wants_the_episodes_of_the_demos_and_the_same_environment(tmp_path, capsys):
    options = {"num_demos": 2, "num_classifier_episodes": 0, "output_dir": tmp_path} | SMALL
    demos = record(FIXED, **{k: v for k, v in options.items() if k != "output_dir"}, output_dir=tmp_path)
    content = demos.read_bytes()
    more = {"num_demos": 3, "resume": True}
    for other in ({"setup_mode": LEARNED}, {"setup_mode": FIXED, "env_args": "image_size=24"}):
        with pytest.raises(SystemExit):
            record_demos.main(command(options | more | other))
        assert "--resume wants the environment, cameras and setup mode of before" in capsys.readouterr().err
    assert demos.read_bytes() == content and len(list((tmp_path / "episodes").iterdir())) == 2
    for path in (tmp_path / "episodes").iterdir():
        path.unlink()
    refused(record_demos, capsys, "demos.pkl is there without", command(options | more | {"setup_mode": FIXED}))
    assert demos.read_bytes() == content


@pytest.mark.parametrize("folder, resumes", [(".", False), ("episodes", True)])
def test_the_quick_start_goes_on_with_a_recording_that_was_interrupted(folder, resumes, tmp_path):
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')  # says what would run
    python.chmod(0o755)
    (tmp_path / "venv/requirements.txt").write_bytes((ROOT / "requirements.txt").read_bytes())
    (tmp_path / "data" / folder).mkdir(parents=True)
    settings = os.environ | {"VENV": str(tmp_path / "venv"), "DATA": str(tmp_path / "data")}
    done = subprocess.run([ROOT / "quickstart.sh"], env=settings, capture_output=True, text=True, check=True)
    record = f"record_demos.py --output_dir {tmp_path / 'data'}{' --resume' * resumes}"
    assert done.stdout.splitlines()[0] == record


def test_resume_without_keep_failures_leaves_failures_on_disk(tmp_path, monkeypatch):
    make = record_demos.build.make_env
    options = {"num_classifier_episodes": 0} | SMALL
    with monkeypatch.context() as patch:
        patch.setattr(record_demos.build, "make_env", lambda *args: Robot(Failing(make(*args).env)))
        record(FIXED, tmp_path, num_demos=2, keep_failures=True, **options)
    recorded = {path.name for path in (tmp_path / "episodes").iterdir()}
    good = record(FIXED, tmp_path, num_demos=3, resume=True, **options)
    assert len(np.unique(read_demos(good, "image", FIXED).episode_ids)) == 3
    now = {path.name for path in (tmp_path / "episodes").iterdir()}
    assert now > recorded and len(now) == len(recorded) + 1 and (tmp_path / "failed_demos.pkl").exists()


def test_frames_after_a_success_are_their_own_and_as_the_wrappers_show_them():
    class Reusing(TinyEnv):
        """Gives the same array at each step."""

        def step(self, action):
            self.picture[:] += 1
            return {"image": self.picture}, 1.0, True, False, {"succeed": True}

    class Cropped(gym.ObservationWrapper):
        def observation(self, obs):
            return {"image": obs["image"][:16]}

    env = Reusing()
    env.picture = np.zeros((32, 32, 3), np.uint8)
    frames = recording.more_success(Robot(Cropped(env)), ["image"], FIXED, np.zeros(6), np.random.default_rng(0))
    assert [int(frame["image"][0, 0, 0]) for frame in frames] == list(range(1, recording.SUCCESS_FRAMES))
    assert all(frame["image"].shape == (16, 32, 3) for frame in frames)


def test_a_rate_that_storing_cannot_keep_is_said(monkeypatch):
    obs = {"image": np.zeros((32, 32, 3), np.uint8), "side": np.zeros(3)}
    assert recording.storing_warning(obs, ["image", "state"], 10) is None
    monkeypatch.setattr(recording, "packed", lambda record: time.sleep(0.06))
    assert recording.storing_warning(obs, ["image"], None) is recording.storing_warning(obs, ["image"], 5) is None
    assert "ms of the 100 ms of --control_hz 10" in recording.storing_warning(obs, ["image"], 10)

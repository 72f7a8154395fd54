"""What an environment is promised by whoever acts in it (copies, rate, end, close), and what is wanted of it."""

import json
import signal

import gymnasium as gym
import numpy as np
import pytest
import torch

import train_hybrid
import train_offline
from pytorch_serl.data.episode_files import episode_files, read_episode
from pytorch_serl.envs.human.keyboard import KeyboardHuman
from pytorch_serl.training import build
from pytorch_serl.training.evaluate import Evaluation, _Episode, camera_strip, evaluate, recorded_strip, save_animation
from pytorch_serl.training.limits import limits_of
from pytorch_serl.training.robot import STILL_FRAMES, STILL_ROBOT, CameraWatch, Robot, close_robots, prepare, time_limit
from tests.robot_env import LOG, Logged, OldReset, OldStep, Scaling
from tests.runs import FIXED, command, content, make_demos, metrics, record, refused
from tests.test_hybrid import Still
from tests.tiny_env import LENGTH, TinyEnv

pytestmark = pytest.mark.usefixtures("empty_home")
SCRIPTS = {"hybrid": train_hybrid, "offline": train_offline}


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    return make_demos(tmp_path_factory.mktemp("demos") / "demos.pkl", episodes=2)


@pytest.fixture(autouse=True)
def empty_log():
    LOG.clear()


def words(demos, out, **changes):
    options = {
        "demo_paths": demos,
        "image_keys": "image",
        "setup_mode": FIXED,
        "env": "Logged-v0",
        "save_dir": out,
        "device": "cpu",
        "batch_size": 4,
        "views": 1,
        "max_steps": 2 * LENGTH,
        "eval_every": LENGTH,
        "eval_episodes": 2,
        "stop_at": 1.0,
    }
    hybrid = {"pretrain_steps": 1, "training_starts": 10**6, "learner": "inline"}
    script = changes.pop("script", "hybrid")
    return command(options | (hybrid if script == "hybrid" else {}) | changes)


@pytest.fixture(scope="module")
def agent_file(demos, tmp_path_factory):
    read = train_hybrid.read_demos(demos, ["image"], FIXED)
    agent = build.make_agent(read, lr=1e-3, discount=0.9, device=torch.device("cpu"), backbone=None, trainable=False)
    path = tmp_path_factory.mktemp("agent") / "agent.pt"
    agent.save(path)
    return path


def gaps():
    """Seconds between two commands of an episode, of every environment."""
    last, result = {}, []
    for what, number, when, _ in LOG:
        if what == "step" and number in last:
            result.append(when - last[number])
        if what == "step":
            last[number] = when
        else:
            last.pop(number, None)
    return result


def closings():
    """How often each environment was closed, by number."""
    return {number: sum(what == "close" and n == number for what, n, *_ in LOG) for number in {n for _, n, *_ in LOG}}


# ---------------------------------------------------------------- the rate


def test_training_and_evaluations_keep_the_rate(demos, tmp_path):
    train_hybrid.main(words(demos, tmp_path, control_hz=20, max_steps=LENGTH))
    # twice 2 episodes and 1 of samples during training, 1 of training, 2 + 2
    assert len(gaps()) == 11 * 5 and min(gaps()) > 0.03


def test_eval_ckpt_keeps_the_rate(demos, tmp_path, agent_file):
    train_hybrid.main(words(demos, None, eval_ckpt=agent_file, control_hz=20))
    assert len(gaps()) == 4 * 5 and min(gaps()) > 0.03


def test_train_offline_keeps_the_rate(demos, tmp_path):
    line = words(demos, tmp_path / "run", script="offline", control_hz=20, max_steps=1)
    train_offline.main(line)
    assert len(gaps()) == 6 * 5 and min(gaps()) > 0.03


def test_a_rate_without_an_environment_is_refused(demos, tmp_path, capsys):
    line = words(demos, tmp_path / "run", script="offline", control_hz=0)
    refused(train_offline, capsys, "--control_hz is 0.0; wanted steps per second", line)
    line = words(demos, tmp_path / "run", script="offline", control_hz=10, env=None, eval_episodes=None, stop_at=None)
    refused(train_offline, capsys, "--control_hz needs an environment", line)


def test_a_human_who_holds_a_key_keeps_the_rate_too():
    class Holds:
        def read(self, timeout=0.0):
            return "w"

    env = KeyboardHuman(Robot(Logged(), control_hz=20), Holds(), arms=1, grippers=False, say=lambda line: None)
    env.reset(seed=0)
    env.in_control = True
    for _ in range(LENGTH):
        assert "intervene_action" in env.step(np.zeros(6, np.float32))[4]
    assert min(gaps()) > 0.03


def test_the_pace_restarts_at_each_reset():
    robot = Robot(Logged(), control_hz=2)
    for seed in range(3):
        robot.reset(seed=seed)
        robot.step(np.zeros(6, np.float32))
    assert LOG[-1][2] - LOG[0][2] < 0.4


def test_copies_side_by_side_have_the_rate_and_the_limit():
    first = build.make_env("built-in", FIXED)
    first.control_hz, first.limit = 7.0, 3
    envs = build.side_by_side(first, "built-in", FIXED)
    assert len(envs) == 10 and {(env.control_hz, env.limit) for env in envs} == {(7.0, 3)}
    close_robots(envs)
    assert all(env.closed for env in envs)


# ---------------------------------------------------------------- close


def ends_well(demos, out, monkeypatch, agent_file):
    train_hybrid.main(words(demos, out))


def eval_ckpt(demos, out, monkeypatch, agent_file):
    train_hybrid.main(words(demos, None, eval_ckpt=agent_file))


def eval_ckpt_refused(demos, out, monkeypatch, agent_file):
    with pytest.raises(SystemExit):
        train_hybrid.main(words(demos, None, eval_ckpt="none.pt"))


def camera_error(demos, out, monkeypatch, agent_file):
    with pytest.raises(RuntimeError, match="no frame within 1 s"):
        train_hybrid.main(words(demos, out, env="Camera_raises-v0"))
    assert content(out)


def bad_close_after_a_camera_error(demos, out, monkeypatch, agent_file):
    with pytest.raises(RuntimeError, match="no frame within 1 s"):
        train_hybrid.main(words(demos, out, env="BadCloseCamera-v0"))
    assert content(out)


def bad_close(demos, out, monkeypatch, agent_file):
    train_hybrid.main(words(demos, out, env="BadClose-v0"))
    assert {file.name for file in out.iterdir()} >= {"evaluation.json", "best.pt", "last.pt"}


def ctrl_c_in_training(demos, out, monkeypatch, agent_file):
    interrupted(monkeypatch, after=1 + 3 * LENGTH + 4)
    with pytest.raises(SystemExit) as stop:
        train_hybrid.main(words(demos, out))
    assert stop.value.code == 130 and content(out)["step"] == 4


def ctrl_c_in_an_evaluation(demos, out, monkeypatch, agent_file):
    interrupted(monkeypatch, after=3)
    with pytest.raises(SystemExit) as stop:
        train_hybrid.main(words(demos, out))
    assert stop.value.code == 130 and content(out)["step"] == 0


def ctrl_c_in_eval_ckpt(demos, out, monkeypatch, agent_file):
    interrupted(monkeypatch, after=3)
    with pytest.raises(KeyboardInterrupt):
        train_hybrid.main(words(demos, None, eval_ckpt=agent_file))


def offline(demos, out, monkeypatch, agent_file):
    train_offline.main(words(demos, out, script="offline", max_steps=1))


def offline_camera_error(demos, out, monkeypatch, agent_file):
    with pytest.raises(RuntimeError, match="no frame within 1 s"):
        train_offline.main(words(demos, out, script="offline", max_steps=1, env="Camera_raises-v0"))


def refused_after_it_was_made(demos, out, monkeypatch, agent_file):
    for module in SCRIPTS:
        with pytest.raises(SystemExit):
            SCRIPTS[module].main(words(demos, out, script=module, backbone="none.pt"))


def does_not_fit(demos, out, monkeypatch, agent_file):
    monkeypatch.setattr(build, "check_env", lambda *a: (_ for _ in ()).throw(ValueError("does not fit")))
    for module in SCRIPTS:
        with pytest.raises(SystemExit):
            SCRIPTS[module].main(words(demos, out, script=module))


def interrupted(monkeypatch, after):
    step, count = Logged.step, 0

    def interrupt(env, action):
        nonlocal count
        count += 1
        if count == after:
            signal.raise_signal(signal.SIGINT)
        return step(env, action)

    monkeypatch.setattr(Logged, "step", interrupt)


WAYS_OUT = [
    ends_well,
    eval_ckpt,
    eval_ckpt_refused,
    camera_error,
    bad_close_after_a_camera_error,
    bad_close,
    ctrl_c_in_training,
    ctrl_c_in_an_evaluation,
    ctrl_c_in_eval_ckpt,
    offline,
    offline_camera_error,
    refused_after_it_was_made,
    does_not_fit,
]


@pytest.mark.parametrize("way_out", WAYS_OUT, ids=lambda way: way.__name__)
def test_an_environment_is_closed_once_on_every_way_out(way_out, demos, tmp_path, monkeypatch, agent_file, capsys):
    made = Logged.made
    way_out(demos, tmp_path / "run", monkeypatch, agent_file)
    assert Logged.made > made and LOG[-1][0] == "close"
    assert [what for what, *_ in LOG].count("close") == Logged.made - made == len(closings())
    said = capsys.readouterr().out
    assert ("close() failed: RuntimeError: the driver is gone already" in said) == way_out.__name__.startswith("bad")


def test_all_environments_of_the_built_in_task_are_closed_once(tmp_path, monkeypatch):
    from pytorch_serl.envs.tabletop.task import TabletopEnv

    path = record(FIXED, tmp_path, num_demos=2, num_classifier_episodes=0, image_keys=["image"])
    closed, made, init = [], [], TabletopEnv.__init__
    monkeypatch.setattr(TabletopEnv, "__init__", lambda self, *a, **k: made.append(id(self)) or init(self, *a, **k))
    monkeypatch.setattr(TabletopEnv, "close", lambda self: closed.append(id(self)))
    monkeypatch.setattr(TabletopEnv, "reset", lambda self, **k: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(SystemExit):  # found by the first reset, before the copies are made
        train_hybrid.main(words(path, tmp_path / "run", env="built-in"))
    assert len(closed) == len(made) == 1
    monkeypatch.undo()
    closed.clear(), made.clear()
    monkeypatch.setattr(TabletopEnv, "__init__", lambda self, *a, **k: made.append(id(self)) or init(self, *a, **k))
    monkeypatch.setattr(TabletopEnv, "close", lambda self: closed.append(id(self)))
    with pytest.raises(SystemExit):
        train_hybrid.main(words(path, tmp_path / "run", env="built-in", eval_ckpt="none.pt"))
    assert len(made) == 10 and sorted(closed) == sorted(made)


# ---------------------------------------------------------------- copies


def test_what_is_stored_is_what_was_commanded(demos, tmp_path):
    train_hybrid.main(words(demos, tmp_path, env="Scaling-v0"))
    recorded = [step for path in episode_files(tmp_path).values() for step in read_episode(path)]
    training = [action for what, _, _, action in LOG if what == "step"][1 + 3 * LENGTH :]  # behind probe and evaluation
    assert np.array_equal([step["actions"] for step in recorded[:LENGTH]], training[:LENGTH])
    for step in recorded:  # the environment's arrays are the same in every step
        assert not np.array_equal(step["observations"]["image"], step["next_observations"]["image"])


@pytest.mark.parametrize("guard", [True, False])
def test_a_keyboards_correction_is_stored_as_it_was_commanded(guard):
    class Typed:
        def read(self, timeout=0.0):
            return "w"

    inner = Scaling()
    env = KeyboardHuman(Robot(inner) if guard else inner, Typed(), arms=1, grippers=False, say=lambda line: None)
    env.reset(seed=0)
    env.in_control = True
    assert env.step(np.zeros(6, np.float32))[4]["intervene_action"].tolist() == [0.5, 0, 0, 0, 0, 0]


def test_the_scripted_humans_action_is_a_copy():
    from pytorch_serl.envs.human.scripted import ScriptedHuman
    from pytorch_serl.envs.tabletop.task import TabletopEnv

    class Scales(TabletopEnv):
        def step(self, action):
            result = super().step(action)
            self.got = action.copy()
            action *= 0
            return result

    env = ScriptedHuman(Scales(FIXED, image_size=16), patience=0, seed=0)
    env.reset(seed=0)
    info = env.step(np.zeros(6, np.float32))[4]
    assert info["intervene_action"].any() and np.array_equal(info["intervene_action"], env.unwrapped.got)


def test_an_evaluations_observations_are_its_own():
    seen = []

    class Sees(Still):
        def sample_actions(self, obs, argmax):
            seen.append(obs["image"])
            return np.zeros(6, np.float32)

    evaluate(Sees(), Scaling(), 1)
    assert all(not np.array_equal(a, b) for a, b in zip(seen, seen[1:]))


# ---------------------------------------------------------------- the end


def test_max_steps_ends_an_episode_as_a_time_limit_does(demos, tmp_path, capsys):
    train_hybrid.main(words(demos, tmp_path, env="Endless-v0", max_steps=20, eval_every=100))
    assert "WARNING: no time limit is registered for --env Endless-v0" in capsys.readouterr().out
    recorded = [read_episode(path) for path in episode_files(tmp_path).values()]
    assert [len(steps) for steps in recorded] == [20] and content(tmp_path)["step"] == 20
    assert recorded[0][-1]["dones"] and {step["masks"] for step in recorded[0]} == {1.0}
    evaluations = [what for what, *_ in LOG].count("step") - 1 - 20
    assert evaluations == (2 * (2 + 1) + 2 * 2) * 20  # at the start and the end of the training, and the final two
    assert json.loads((tmp_path / "evaluation.json").read_text())["deterministic"]["successes"] == 0


def test_a_registered_limit_is_no_warning_and_max_steps_ends_its_last_episode(demos, tmp_path, capsys):
    train_hybrid.main(words(demos, tmp_path, max_steps=LENGTH + 2, eval_every=100))
    assert "time limit" not in capsys.readouterr().out
    assert [len(read_episode(path)) for path in episode_files(tmp_path).values()] == [LENGTH, 2]


def test_an_evaluation_does_not_wait_for_a_long_episode(demos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_hybrid, "evaluate_to_stop", lambda *a: (Evaluation(0, 1, [], [0.0], {}), False))
    monkeypatch.setattr(train_hybrid, "evaluate", lambda *a, **k: Evaluation(0, 1, [], [0.0], {}))
    monkeypatch.setattr(train_hybrid, "report_evaluation", lambda *a, **k: None)
    train_hybrid.main(words(demos, tmp_path, env="Long-v0", max_steps=30, eval_every=7))
    assert set(metrics(tmp_path, "eval_success")) == {0, 14, 28, 30}  # due at 7, never later than the next one


def test_train_offline_ends_an_evaluation_in_an_endless_environment(demos, tmp_path, capsys):
    line = words(demos, tmp_path, script="offline", env="Endless-v0", max_steps=1)
    train_offline.main(line)
    assert "is ended after 50 steps" in capsys.readouterr().out  # ten times the longest demo, 4 steps, or 50
    assert [what for what, *_ in LOG].count("step") == 1 + 3 * 2 * 50


def test_time_limits_are_found_wherever_they_are():
    from pytorch_serl.envs.tabletop.task import TabletopEnv

    assert time_limit(gym.make("Long-v0")) == 1000 and time_limit(gym.make("Endless-v0")) is None
    assert time_limit(gym.wrappers.TimeLimit(TinyEnv(), 9)) == 9 and time_limit(TabletopEnv(image_size=16)) == 50


def test_a_limit_that_is_an_attribute_ends_episodes(capsys):
    task = gym.make("Endless-v0").unwrapped
    task.max_episode_steps = 5
    env = Robot(task)
    prepare(env, "Limited", longest_demo=4, control_hz=None, verdict=True)
    env.reset(seed=0)
    assert [env.step(np.zeros(6, np.float32))[3] for _ in range(5)] == [False] * 4 + [True]
    assert "no time limit" not in capsys.readouterr().out


def test_an_evaluation_shows_its_progress(capsys):
    evaluate(Still(), TinyEnv(), 2)
    assert "evaluating" in capsys.readouterr().err


# ---------------------------------------------------------------- cameras


@pytest.mark.parametrize(
    "fault, text", [("frozen", "frames are identical"), ("black", "show nothing"), ("grey", "show nothing")]
)
def test_a_camera_that_stops_raises_an_alarm(fault, text, demos, tmp_path, capsys):
    train_hybrid.main(words(demos, tmp_path, env=f"Camera_{fault}-v0", max_steps=5 * LENGTH, eval_every=1000))
    out = capsys.readouterr().out
    assert out.count("ALARM: camera") == 1 and f"ALARM: camera 'image': the last {STILL_FRAMES} " in out and text in out


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "fault, got", [("size", "uint8 (16, 32, 3)"), ("float", "float64 (32, 32, 3)")], ids=["size", "float"]
)
def test_another_size_or_type_is_an_error_that_names_the_camera(script, fault, got, demos, tmp_path, capsys):
    line = words(demos, tmp_path, script=script, env=f"Camera_{fault}-v0", max_steps=2)
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[script].main(line)
    errors = [x for x in capsys.readouterr().err.replace("\r", "\n").splitlines() if x.startswith("error: ")]
    assert stop.value.code == 2 and len(errors) == 1
    assert f"camera 'image' gave {got}; its space says uint8 (32, 32, 3)" in errors[0]


@pytest.mark.parametrize("correction", [None, ["up"] * 6, [[0.5], [0.5, 0.5]]])
def test_a_correction_that_is_none_is_left_to_who_records_it(correction):
    class Odd(TinyEnv):
        def step(self, action):
            *result, info = super().step(action)
            return *result, info | {"intervene_action": correction}

    robot = Robot(Odd(), limit=1)
    robot.reset(seed=0)
    *_, truncated, info = robot.step(np.zeros(6))
    assert info["intervene_action"] is correction and truncated


def test_what_is_no_array_is_named():
    class Ragged(TinyEnv):
        def _observe(self):
            return super()._observe() | {"state": [1.0, [2.0, 3.0]]}

    with pytest.raises(ValueError, match=r"the environment, at its reset: observation\['state'\]: got 2 values"):
        Robot(Ragged()).reset(seed=0)


def test_a_camera_that_gives_nothing_is_named():
    class Lacks(TinyEnv):
        def _observe(self):
            return {"state": super()._observe()["state"]}

    with pytest.raises(ValueError, match=r"camera 'image' gave no frame \(the observation has \['state'\]\)"):
        Robot(Lacks()).reset(seed=0)


MOVE, HOLD = np.full(6, 0.5), np.zeros(6)


@pytest.mark.parametrize(
    "frames, action, alarms",  # frames: of two cameras, by number; -1 is black
    [
        ([(1, i) for i in range(STILL_FRAMES + 1)], MOVE, ["'image'"]),
        ([(i, 1) for i in range(STILL_FRAMES + 1)], MOVE, ["'side'"]),
        ([(1, i) for i in range(STILL_FRAMES)], MOVE, []),
        ([(1, i) for i in range(3 * STILL_FRAMES)], HOLD, []),
        ([(i // 3, i) for i in range(30)], MOVE, []),  # a slow camera
        ([(-1, i) for i in range(STILL_FRAMES + 1)], MOVE, ["'image'"]),
        ([(1, i) for i in range(9)] + [(i, i) for i in range(2)] + [(1, i) for i in range(9)], MOVE, ["'image'"] * 2),
    ],
)
def test_which_frames_raise_an_alarm(frames, action, alarms, capsys):
    watch = CameraWatch()

    def picture(number):
        rng = np.random.default_rng(max(number, 0))
        return rng.integers(0, 256 if number >= 0 else 3, (32, 32, 3), np.uint8)

    for index, (image, side) in enumerate(frames):
        obs = {"image": picture(image), "side": picture(100 + side), "state": np.full(3, index)}
        watch.step(obs, ["image", "side"], action)
    said = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("ALARM: camera")]
    assert said == [f"{name}:" for name in alarms] and bool(watch.raised) == bool(alarms)


def test_an_arm_that_stands_has_longer(capsys):
    watch, obs = CameraWatch(), {"image": np.arange(3072, dtype=np.uint8).reshape(32, 32, 3), "state": np.zeros(3)}
    for _ in range(STILL_ROBOT):
        watch.step(obs, ["image"], MOVE)
    assert not capsys.readouterr().out
    watch.step(obs, ["image"], MOVE)
    assert "and so is the state" in capsys.readouterr().out


def test_frames_in_which_the_arm_stood_are_not_held_against_a_moving_one(capsys):
    watch, image = CameraWatch(), np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)
    for place in (0,) * STILL_FRAMES + (1, 2):  # stands at its limit, then leaves it by less than a pixel
        watch.step({"image": image, "state": np.full(3, place)}, ["image"], MOVE)
    assert not capsys.readouterr().out
    for place in range(3, 3 + STILL_FRAMES):
        watch.step({"image": image, "state": np.full(3, place)}, ["image"], MOVE)
    assert "ALARM: camera 'image'" in capsys.readouterr().out


# ---------------------------------------------------------------- said before anything is learned


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "env, message",
    [
        ("OldReset-v0", "reset(*, seed=None, options=None) returns observation, info"),
        ("OldStep-v0", "step(action) returns observation, reward, terminated, truncated, info"),
        ("Silent-v0", "wanted 'succeed' (bool) in the info of every step"),
    ],
)
def test_another_interface_is_found_before_the_pretraining(script, env, message, demos, tmp_path, capsys):
    refused(SCRIPTS[script], capsys, message, words(demos, tmp_path / "run", script=script, env=env))
    assert not (tmp_path / "run").exists()


def test_eval_ckpt_says_it_too(demos, agent_file, capsys):
    refused(train_hybrid, capsys, "wanted 'succeed' (bool)", words(demos, None, env="Silent-v0", eval_ckpt=agent_file))


def test_what_is_no_interface_of_gymnasiums_is_said_by_the_robot_itself():
    for kind, message in ((OldReset, "reset.. got an unexpected"), (OldStep, "step.. returned 4 values .*wanted five")):
        with pytest.raises(ValueError, match=message):
            Robot(kind()).probe(verdict=True)


def test_the_first_step_holds_still():
    robot = Robot(Logged())
    robot.probe(verdict=True)
    assert [what for what, *_ in LOG] == ["reset", "step"] and not LOG[1][3].any()


# ---------------------------------------------------------------- pictures


class Large(TinyEnv):
    """Two cameras of 480 x 640."""

    def _observe(self):
        obs = super()._observe()
        return obs | {key: np.full((480, 640, 3), level, np.uint8) for key, level in (("image", 90), ("side", 200))}


def test_large_frames_are_shrunk_when_they_are_taken(tmp_path):
    import gymnasium as gym

    env = Large()
    camera = gym.spaces.Box(0, 255, (480, 640, 3), np.uint8)
    env.observation_space = gym.spaces.Dict({"image": camera, "side": camera})
    policy = Still()
    policy.image_keys = ["image", "side"]
    frames = evaluate(policy, env, 2, record_episodes=2, seed=1).frames
    assert {frame.shape for frame in frames} == {(120, 320, 3)} and len(frames) == 2 * (LENGTH + 4)
    assert (frames[0][:, :160] == 90).all() and (frames[0][:, 160:] == 200).all()
    assert (frames[-1][:3] == (40, 200, 80)).all()  # the border of success is as wide as ever
    save_animation(tmp_path / "a.gif", frames)
    assert (tmp_path / "a.gif").stat().st_size < 100_000


def test_small_frames_are_kept_as_they_are():
    obs = {key: np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8) for key in "ab"}
    assert np.array_equal(recorded_strip(obs, ["a", "b"]), camera_strip(obs, ["a", "b"]))


def test_a_long_episode_keeps_a_bounded_number_of_frames():
    env = Robot(Logged(ends=False))
    episode = _Episode(env, 1, ["image"], limits_of(None, env))
    for _ in range(1000):
        episode.step(np.zeros(6))
    assert 30 <= len(episode.frames) <= 60

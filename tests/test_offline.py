"""train_offline.py on tiny made-up demos: outputs, resume, interruption, early stop, refusals, what cloning learns."""

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

import train_hybrid
import train_offline
from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.demos import read_demos, split_episodes
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.training import build
from pytorch_serl.training import evaluate as training_evaluate
from pytorch_serl.training.evaluate import EVAL_SEED, Evaluation, held_out_errors
from pytorch_serl.utils.files import load_checkpoint
from tests import tiny_env
from tests.runs import (
    FIXED,
    LEARNED,
    ROOT,
    RUN_OUTPUTS,
    assert_same_run,
    command,
    content,
    equal,
    make_demos,
    metrics,
    record,
    refused,
)


@pytest.fixture(scope="module")
def gripper_demos(tmp_path_factory):
    path = tmp_path_factory.mktemp("demos") / "gripper.pkl"
    return make_demos(path, action_dim=7, gripper=True, keys=("image", "wrist"))


@pytest.fixture(autouse=True)
def no_published_backbone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(train_offline.signal, "signal", signal.signal)
    yield
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def words(demos, out, **changes):
    """The command line of a short run; see `command`."""
    options = {
        "demo_paths": demos,
        "image_keys": "image",
        "setup_mode": FIXED,
        "batch_size": 4,
        "views": 2,
        "save_dir": out,
        "device": "cpu",
        "max_steps": 4,
    }
    return command(options | changes)


# ---------------------------------------------------------------- the script


@pytest.mark.parametrize("algo", [None, "bc", pytest.param("sac", marks=pytest.mark.slow)])
def test_script(algo, demos, gripper_demos, tmp_path):
    """As in the README with the smaller numbers; the default (awac) with two cameras and a gripper."""
    two = {"demo_paths": gripper_demos, "image_keys": ["image", "wrist"], "setup_mode": LEARNED} if not algo else {}
    command = words(demos, tmp_path / "run", algo=algo, max_steps=51 if not algo else 3, device=None, views=1, **two)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "train_offline.py", *command], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = {file.name for file in (tmp_path / "run").iterdir()}
    assert written >= RUN_OUTPUTS and not written & {"evaluation.gif", "evaluation.json"}
    assert any(name.startswith("events.out.tfevents") for name in written)
    assert "no success rate will be known" in done.stdout and "Its success rate is not known" in done.stdout
    line = done.stdout.splitlines()[-1]
    assert line.startswith("next: python train_hybrid.py ")
    asked = train_hybrid.parse_args(shlex.split(line)[3:])
    assert asked.eval_ckpt == str(tmp_path / "run/best.pt") and asked.demo_paths == [str(two.get("demo_paths", demos))]
    assert (asked.image_keys, asked.setup_mode) == (two.get("image_keys", ["image"]), two.get("setup_mode", FIXED))
    assert "5 episodes (20 transitions) to train on, 1 (4 transitions) held out" in done.stdout
    assert ("WARNING: plain SAC is expected to fail" in done.stdout) == (algo == "sac")
    assert ("updates take up to 1 minutes; it stops sooner when the held-out error" in done.stdout) == (not algo)
    assert "Traceback" not in done.stderr and json.loads((tmp_path / "run/settings.json").read_text())["algo"]
    (error,) = metrics(tmp_path / "run", "held_out_error").values()
    assert 0 < error < 2 and f"held out error {error:.4f}" in done.stdout
    assert ("held_out_gripper_moves" in (tmp_path / "run/metrics.jsonl").read_text()) == (not algo)

    read = read_demos(two.get("demo_paths", demos), two.get("image_keys", "image"), two.get("setup_mode", FIXED))
    agent = build.make_agent(
        read, lr=1e-3, discount=0.9, device=torch.device("cpu"), backbone=None, trainable=False
    )  # a random backbone; best.pt names the shipped one
    agent.load(tmp_path / "run/best.pt")  # as train_hybrid.py --init_ckpt does
    last = content(tmp_path / "run")
    assert equal(agent.online.state_dict(), last["agent"]["modules"]["target"]) and last["step"] == (
        51 if not algo else 3
    )
    assert equal(agent.actor.state_dict(), last["agent"]["modules"]["average_actor"])


def test_with_an_environment(tmp_path):
    """The built-in task: success rates, GIF, and best.pt by success."""

    path = record(FIXED, tmp_path, num_demos=2, num_classifier_episodes=0, image_keys=["image"])
    out = tmp_path / "run"
    train_offline.main(words(path, out, env="built-in", eval_episodes=1, max_steps=2, views=1))
    assert {file.name for file in out.iterdir()} >= RUN_OUTPUTS | {"evaluation.gif", "evaluation.json"}
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["deterministic"]["episodes"] == 1 and set(metrics(out, "eval_success")) == {2}
    assert json.loads((out / "settings.json").read_text())["val_fraction"] == 0


class Debugging(tiny_env.TinyEnv):
    """A camera that no policy uses gives other frames than its space says."""

    def __init__(self):
        super().__init__()
        debug = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({**self.observation_space.spaces, "debug": debug})

    def _observe(self):
        return super()._observe() | {"debug": np.zeros((2, 2), np.uint8)}


def test_a_camera_that_the_policy_does_not_use_may_give_anything(demos, tmp_path):
    gym.register("Debugging-v0", entry_point=Debugging, max_episode_steps=10, disable_env_checker=True)
    once = {"env": "Debugging-v0", "max_steps": 1, "eval_episodes": 1, "final_episodes": 1, "views": 1}
    train_offline.main([*words(demos, tmp_path, **once), "--no-sampled"])
    assert set(metrics(tmp_path, "eval_success")) == {1}


def fake_environment(monkeypatch, rates):
    """Evaluations of an environment that nobody steps, one after another; what reaches 0.95 sees other episodes."""
    results = iter(rates)
    finals, again = [], [False]

    def evaluate(agent, env, n, seed, screen=0.0):
        assert seed == EVAL_SEED + n // 2 * again[0]  # twice as many others
        rate = next(results)
        again[0] = rate >= 0.95 and not again[0]
        return Evaluation(round(n * rate), n, [], [], {})

    monkeypatch.setattr(train_offline.build, "make_env", lambda *args: gym.Env())
    monkeypatch.setattr(train_offline.build, "check_env", lambda *a: None)
    monkeypatch.setattr(training_evaluate, "evaluate", evaluate)
    monkeypatch.setattr(
        train_offline,
        "report_evaluation",
        lambda agent, env, n, out, seed: finals.append((n, seed, agent.state_dict()["modules"])),
    )
    return finals


def test_best_is_chosen_by_success(demos, tmp_path, monkeypatch):
    finals = fake_environment(monkeypatch, [0.5, 0.9, 0.2])
    train_offline.main(words(demos, tmp_path, env="Mine-v0", eval_every=1, stop_at=0.95, max_steps=3))
    progress = content(tmp_path)["progress"]
    assert (content(tmp_path)["step"], progress["best"], progress["best_step"]) == (3, 0.9, 2)
    ((episodes, seed, modules),) = finals
    assert episodes == 100 and seed > 10**9  # unseen
    kept = load_checkpoint(tmp_path / "best.pt")["modules"]  # without the shipped backbone, which is named by its hash
    assert equal({name: module for name, module in modules.items() if name != "backbone"}, kept)
    assert not equal(modules["online"], content(tmp_path)["agent"]["modules"]["target"])  # update 2, not 3


def test_more_episodes_of_the_same_success_rate_count_for_more(demos, tmp_path, monkeypatch):
    fake_environment(monkeypatch, [0.95, 0.875, 0.9, 0.2])  # 19 of 20 and 35 of 40, then 18 of 20
    train_offline.main(words(demos, tmp_path, env="Mine-v0", eval_every=1, stop_at=0.95, max_steps=3))
    progress = content(tmp_path)["progress"]
    assert (progress["evaluated"], progress["best"], progress["best_step"]) == (3, 0.9, 1)
    assert progress["low"] == pytest.approx(training_evaluate.wilson_interval(54, 60)[0])


def test_stops_when_the_policy_succeeds_on_other_episodes_too(demos, tmp_path, monkeypatch, capsys):
    fake_environment(monkeypatch, [0.95, 0.2, 1.0, 0.85, 0.95, 0.95, 1.0])
    train_offline.main(words(demos, tmp_path, env="Mine-v0", eval_every=1, stop_at=0.95, max_steps=9))
    progress = content(tmp_path)["progress"]
    assert (content(tmp_path)["step"], progress["best"], progress["best_step"]) == (3, 0.95, 3)
    said = capsys.readouterr().out
    assert "stopped early: --stop_at was reached, over other episodes as well" in said
    assert "60, since the first 20 reached --stop_at: 40 others followed, and all of them count" in said


def test_a_run_that_stopped_as_solved_goes_on_when_more_is_wanted(demos, tmp_path, monkeypatch):
    fake_environment(monkeypatch, [0.95, 0.95, *[0.5] * 20])
    line = {"env": "Mine-v0", "eval_every": 1, "max_steps": 3}
    train_offline.main(words(demos, tmp_path, stop_at=0.9, **line))
    assert content(tmp_path)["step"] == 1
    train_offline.main(words(demos, tmp_path, stop_at=1.0, resume=True, **line))
    assert content(tmp_path)["step"] == 3


@pytest.mark.parametrize("failing", [False, True])
def test_advantages_weigh_only_where_a_demo_fails(failing, demos, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        SACAgent, "update", lambda self, batch, **options: asked.append(options) or {"q": torch.ones(())}
    )
    transitions = pickle.loads(demos.read_bytes())
    if failing:
        transitions[-1] |= {"rewards": 0.0, "masks": 1.0}
    path = tmp_path / "demos.pkl"
    path.write_bytes(pickle.dumps(transitions))
    train_offline.main(words(path, tmp_path / "run", max_steps=1, val_fraction=0))
    assert asked[0]["advantage_weighted"] and (asked[0].get("advantage_share") == 0.0) == (not failing)
    assert ("every demo ends in success" in capsys.readouterr().out) == (not failing)


def test_the_default_clones_as_cloning_does_where_every_demo_succeeds(demos, tmp_path):
    """Without a learned gripper, whose Q the critics' losses train, the policy is the same to the bit."""
    parts = []
    for algo in ("awac", "bc"):
        train_offline.main(words(demos, tmp_path / algo, algo=algo, max_steps=5))
        agent = content(tmp_path / algo)["agent"]["modules"]
        encoder = {k: v for k, v in agent["online"].items() if k.startswith("encoder.")}
        parts.append((agent["actor"] | encoder, agent["online"]["critic.head.weight"]))
    assert len(parts[0][0]) > 10 and equal(parts[0][0], parts[1][0]) and not torch.equal(parts[0][1], parts[1][1])


def test_stops_when_the_held_out_error_stays(demos, tmp_path, capsys):
    train_offline.main(words(demos, tmp_path, lr=1e-9, eval_every=2, patience=3, max_steps=50, algo="bc"))
    assert content(tmp_path)["step"] == 8 and content(tmp_path)["progress"]["best_step"] == 2
    assert "stopped early: no better held-out error since update 2 (--patience)" in capsys.readouterr().out
    best, last = (c["modules"] for c in (load_checkpoint(tmp_path / "best.pt"), content(tmp_path)["agent"]))
    assert equal(best["online"], last["target"])  # the last, not the "best"


@pytest.mark.parametrize("last, warned", [(0.511, True), (0.48, False)])
def test_says_where_more_updates_learned_the_noise(last, warned, demos, tmp_path, capsys, monkeypatch):
    """60 demos of the built-in task, 40 of them noisy: 0.462 after 1,000 updates and 46 of 50, then 0.511 and 31."""
    errors = iter([0.5, 0.462, 0.47, last])
    monkeypatch.setattr(train_offline, "held_out_errors", lambda *_: {"held_out_error": next(errors)})
    train_offline.main(words(demos, tmp_path, eval_every=1, max_steps=4, algo="bc"))
    line = "WARNING: the held-out error is 11% above that of update 2"
    assert (line in capsys.readouterr().out) == warned


def test_plain_sac_is_not_stopped_by_a_distance_that_it_does_not_minimise(demos, tmp_path):
    train_offline.main(words(demos, tmp_path, lr=1e-9, eval_every=1, patience=1, max_steps=4, algo="sac"))
    assert content(tmp_path)["step"] == 4


def test_a_loss_that_is_no_number_ends_the_run(demos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_offline, "LOG_EVERY", 1)
    monkeypatch.setattr(SACAgent, "update", lambda *a, **k: {"clone_loss": torch.tensor(float("nan"))})
    with pytest.raises(FloatingPointError, match="update 1: .*nan.*--lr"):
        train_offline.main(words(demos, tmp_path))


# ---------------------------------------------------------------- resume and interruption


@pytest.mark.parametrize("kind", ["frozen", "trained backbone"])
def test_resume_continues_bit_for_bit(kind, demos, gripper_demos, tmp_path, monkeypatch, capsys):
    """And says how long what is left of it takes."""
    monkeypatch.setattr(train_offline, "TIMED_UPDATES", (1, 2))
    if kind == "frozen":
        changes = {"demo_paths": gripper_demos, "image_keys": ["wrist", "image"], "setup_mode": LEARNED}
        half, whole = 3, 6
    else:
        changes = {"train_backbone": True, "batch_size": 2, "algo": "bc"}
        half, whole = 1, 2
    once, twice = tmp_path / "once", tmp_path / "twice"
    train_offline.main(words(demos, once, max_steps=whole, eval_every=half, **changes))
    train_offline.main(words(demos, twice, max_steps=half, eval_every=half, **changes))
    parts = {file: file.stat().st_mtime_ns for file in twice.glob("buffer_*")}
    np.random.seed(99), torch.manual_seed(99)
    capsys.readouterr()
    train_offline.main(words(demos, twice, max_steps=whole, eval_every=half, resume=True, **changes))
    said = capsys.readouterr().out  # the other kind's updates are too few to be timed
    assert kind != "frozen" or f"on cpu: {whole - half} updates take up to" in said
    assert_same_run(once, twice)
    assert metrics(once, "held_out_error") == metrics(twice, "held_out_error")
    assert set(metrics(twice, "held_out_error")) == {half, whole}
    assert parts == {file: file.stat().st_mtime_ns for file in twice.glob("buffer_*")}  # demos are written once


def interrupt(capsys, command):
    with pytest.raises(SystemExit) as error:
        train_offline.main(command)
    assert error.value.code == 130
    return capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_saves_the_last_whole_update(number, demos, tmp_path, monkeypatch, capsys):
    once, twice = tmp_path / "once", tmp_path / "twice"
    train_offline.main(words(demos, once))
    update, count = SACAgent._step, 0

    def interrupted_step(agent, losses):
        nonlocal count
        count += 1
        if count == 2:
            signal.raise_signal(number)  # in the middle of the second update, which is finished first
        update(agent, losses)

    monkeypatch.setattr(SACAgent, "_step", interrupted_step)
    out = interrupt(capsys, words(demos, twice))
    assert f"interrupted: update 2 is saved in {twice / 'last.pt'}; continue with --resume" in out
    assert content(twice)["step"] == 2 and (twice / "best.pt").is_file()
    monkeypatch.undo()
    train_offline.main(words(demos, twice, resume=True))
    assert_same_run(once, twice)


def test_an_interrupted_evaluation_is_done_again(demos, tmp_path, monkeypatch, capsys):
    once, twice = tmp_path / "once", tmp_path / "twice"
    train_offline.main(words(demos, once, eval_every=2))
    with monkeypatch.context() as patch:
        patch.setattr(train_offline, "held_out_errors", lambda *a: signal.raise_signal(signal.SIGINT))
        assert "update 2 is saved" in interrupt(capsys, words(demos, twice, eval_every=2))
    train_offline.main(words(demos, twice, eval_every=2, resume=True))
    assert_same_run(once, twice)
    assert set(metrics(twice, "held_out_error")) == {2, 4}


# ---------------------------------------------------------------- bad input


BAD = {
    "no file": ({"demo_paths": "none.pkl"}, "none.pkl: file: got no such file"),
    "no camera": ({"image_keys": "side"}, "wanted the image key 'side'"),
    "other mode": ({"setup_mode": LEARNED}, f"--setup_mode {FIXED}"),
    "no mode": ({"setup_mode": "three-arms"}, "invalid choice: 'three-arms'"),
    "algo": ({"algo": "cql"}, "invalid choice: 'cql'"),
    "batch": ({"batch_size": 0}, "--batch_size is 0; wanted 1 or more"),
    "steps": ({"max_steps": 0}, "--max_steps is 0"),
    "views": ({"views": 0}, "--views is 0"),
    "patience": ({"patience": 0}, "--patience is 0"),
    "lr": ({"lr": -1}, "--lr is -1.0; wanted a learning rate"),
    "nan": ({"lr": "nan"}, "--lr is nan"),
    "discount": ({"discount": 1.5}, "--discount is 1.5"),
    "val_fraction": ({"val_fraction": 1}, "--val_fraction is 1.0; wanted a share"),
    "seed": ({"seed": -1}, "--seed is -1"),
    "device": ({"device": "abacus"}, "device 'abacus' is not usable"),
    "episodes": ({"eval_episodes": 5}, "--eval_episodes needs an environment"),
    "stop_at": ({"stop_at": 0.9}, "--stop_at needs an environment"),
    "two backbones": ({"backbone": "random", "download_backbone": True}, "--backbone says random; give one"),
    "env": ({"env": "NoSuchTask-v0"}, "--env NoSuchTask-v0"),
    "other env": ({"env": "built-in"}, "--env built-in does not fit the demos: observation 'image' is (128, 128, 3)"),
    "backbone": ({"backbone": "none.pt"}, "none.pt: no such backbone file"),
    "resume": ({"resume": True}, "no checkpoint to resume from"),
    "both": ({"resume": True, "overwrite": True}, "exclude each other"),
    "number": ({"max_steps": "many"}, "invalid int value: 'many'"),
    "typo": ({"max_step": 5}, "unrecognized arguments: --max_step 5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_2(name, demos, tmp_path, capsys):
    changes, message = BAD[name]
    refused(train_offline, capsys, message, words(demos, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_runs_are_not_lost_and_not_mixed(demos, tmp_path, capsys):
    out = tmp_path / "run"
    train_offline.main(words(demos, out, max_steps=1))
    capsys.readouterr()
    before = {file: file.read_bytes() for file in out.iterdir()}
    refused(train_offline, capsys, "holds a run already", words(demos, out))
    for changes, message in (
        ({"lr": 1e-3}, "--lr was 0.0003, is 0.001; resume with the same ones"),
        ({"algo": "bc", "views": 1}, "--algo was awac, is bc; --views was 2, is 1"),
        ({"demo_paths": make_demos(tmp_path / "other.pkl", seed=1)}, "was trained on other demos"),
        ({"train_backbone": True}, "--train_backbone was False, is True"),
    ):
        refused(train_offline, capsys, message, words(demos, out, resume=True, **changes))
    assert before == {file: file.read_bytes() for file in out.iterdir()}
    (out / "best.pt").unlink()
    refused(train_offline, capsys, "best.pt is missing", words(demos, out, resume=True))
    torch.save({"weights": 1}, out / "last.pt")
    refused(train_offline, capsys, "not a run's checkpoint", words(demos, out, resume=True))
    train_offline.main(words(demos, out, max_steps=2, overwrite=True))
    assert content(out)["step"] == 2


# ---------------------------------------------------------------- held-out episodes


def test_whole_episodes_are_held_out(tmp_path):
    demos = read_demos(make_demos(tmp_path / "demos.pkl", episodes=20), "image", FIXED)
    train, held_out = split_episodes(demos, 0.1, seed=0)
    ids, others = set(held_out.episode_ids.tolist()), set(train.episode_ids.tolist())
    assert len(ids) == 2 and len(others) == 18 and not ids & others
    assert len(held_out.transitions) == 8 and len(train.transitions) == 72
    chosen = [demos.transitions[row] for row in np.flatnonzero(np.isin(demos.episode_ids, list(ids)))]
    assert all(a is b for a, b in zip(held_out.transitions, chosen))
    assert set(split_episodes(demos, 0.1, seed=0)[1].episode_ids) == ids
    assert any(set(split_episodes(demos, 0.1, seed=s)[1].episode_ids) != ids for s in range(1, 5))
    assert split_episodes(demos, 0.0, seed=0) == (demos, None)
    few = read_demos(make_demos(tmp_path / "few.pkl", episodes=5), "image", FIXED)
    assert len(split_episodes(few, 0.01, seed=0)[1].transitions) == 4  # at least one
    assert len(split_episodes(few, 0.99, seed=0)[0].transitions) == 4  # and one left
    four = read_demos(make_demos(tmp_path / "four.pkl", episodes=4), "image", FIXED)
    assert split_episodes(four, 0.5, seed=0)[1] is None


class FakeAgent:
    """Always moves by 0.5 and closes the left gripper."""

    def __init__(self, num_grippers):
        self.num_grippers = num_grippers

    def sample_actions(self, obs, argmax):
        assert argmax
        blocks = [[0.5, 0.5, -1.0], [0.5, 0.5, 0.0]] if self.num_grippers else [[0.5, 0.5, 0.5]]
        return np.tile(np.array(blocks, np.float32).ravel(), (len(obs["state"]), 1))


@pytest.mark.parametrize(
    ("grippers", "actions", "wanted"),
    [
        (0, [[0.5, 0.5, -0.1], [0.2, 0.5, 0.5]], {"held_out_error": 0.15}),
        (
            2,
            [[0.5, 0.1, -1, 0.5, 0.5, 0], [0.5, 0.5, 1, 0.5, 0.5, -1], [0.5, 0.5, -1, 0.5, 0.5, 1]],
            {"held_out_error": 0.4 / 12, "held_out_gripper": 3 / 6, "held_out_gripper_moves": 2 / 5},
        ),
        (  # what goes on is no move
            2,
            [[0.5, 0.5, -1, 0.5, 0.5, 1], [0.5, 0.5, -1, 0.5, 0.5, 1], [0.5, 0.5, 1, 0.5, 0.5, 1]],
            {"held_out_error": 0.0, "held_out_gripper": 2 / 6, "held_out_gripper_moves": 1 / 3},
        ),
    ],
)
def test_held_out_errors_by_hand(grippers, actions, wanted):
    buffer = ReplayBuffer(10, [])
    obs = {"state": np.zeros(2, np.float32)}
    for action in actions:
        step = {"observations": obs, "next_observations": obs, "actions": np.array(action, np.float32)}
        buffer.add(step | {"rewards": 0.0, "masks": 1.0, "dones": False})
    assert held_out_errors(FakeAgent(grippers), buffer, batch_size=2) == pytest.approx(wanted)


# ---------------------------------------------------------------- learning


def test_advantages_prefer_the_better_of_two_actions_where_cloning_averages_them():
    """One-step task; half of the demos do +0.6 and are rewarded, half do -0.6 and are not."""
    obs = {"state": np.ones(1, np.float32)}
    buffer = ReplayBuffer(100, [])
    for i in range(40):
        good = i % 2 == 0
        step = {"observations": obs, "next_observations": obs, "actions": np.array([0.6 if good else -0.6], np.float32)}
        buffer.add(step | {"rewards": float(good), "masks": 0.0, "dones": True})
    learned = {}
    for algo in ("bc", "awac"):
        torch.manual_seed(0)
        agent = SACAgent([], 1, lr=1e-3, state_dim=1, device="cpu")
        modes = []
        for _ in range(300):
            agent.update(buffer.sample(64), **train_offline.UPDATES[algo])
            modes.append(float(agent.sample_actions(obs, argmax=True)[0]))
        learned[algo] = np.mean(modes[-100:])  # a batch's share of good actions makes single ones waver
    weights = [0.5 + 0.5 * np.exp(advantage) / np.cosh(1) for advantage in (1, -1)]  # in units of Q's spread
    wanted = np.tanh(np.arctanh(0.6) * (weights[0] - weights[1]) / 2)  # 0.26
    assert abs(learned["bc"]) < 0.05 and abs(learned["awac"] - wanted) < 0.05, learned

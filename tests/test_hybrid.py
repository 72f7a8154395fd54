"""train_hybrid.py: outputs, interventions, rewards, resume, interruption, refusals; short runs on tiny pictures."""

import json
import os
import pickle
import signal
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

import train_hybrid
import train_offline
from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.episode_files import episode_files, read_episode
from pytorch_serl.data.frames import read_classifier_frames
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.training import build
from pytorch_serl.training import evaluate as training_evaluate
from pytorch_serl.training import learner as learner_module
from pytorch_serl.training.evaluate import EVAL_SEED, FINAL_SEED, Evaluation, evaluate
from pytorch_serl.training.hybrid_options import choose_for_demos
from pytorch_serl.training.learner import Learner
from pytorch_serl.training.rewards import ClassifierReward, ContractError, executed_action, state_conditions
from pytorch_serl.training.run import run_script
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
from tests.tiny_env import HUMAN_STEPS, LENGTH, TinyEnv

pytestmark = pytest.mark.usefixtures("empty_home")


class Still:
    num_grippers, image_keys = 0, ["image"]

    def sample_actions(self, obs, argmax):
        return np.zeros(6, np.float32)


def words(demos, out, **changes):
    """The command line of a short run; see `command`."""
    options = {
        "demo_paths": demos,
        "image_keys": "image",
        "setup_mode": FIXED,
        "env": "Tiny-v0",
        "save_dir": out,
        "device": "cpu",
        "batch_size": 4,
        "views": 2,
        "pretrain_steps": 0 if "init_ckpt" in changes else 2,
        "training_starts": 4,
        "learner": "inline",
        "max_steps": 2 * LENGTH,
        "eval_every": LENGTH,
        "eval_episodes": 1,
        "buffer_capacity": 100,
    }
    return command(options | changes)


def training(demos, out, **changes):
    """A HybridTraining that has its demos and has taken no step."""
    args = train_hybrid.parse_args(words(demos, out, **changes))
    read = train_hybrid.read_demos(args.demo_paths, args.image_keys, args.setup_mode)
    agent = build.make_agent(read, lr=1e-3, discount=0.9, device=args.device, backbone=None, trainable=False)
    run = train_hybrid.HybridTraining(args, agent, read, out, train_hybrid.make_env(args, read))
    build.add_demos(run.learner.demo, read, agent, args.views)
    return run


def episode(run):
    run.actor.start_episode()
    for step in range(LENGTH):
        done = run.act(step)
    assert done


def modules(agent):
    return agent.state_dict()["modules"]


# ---------------------------------------------------------------- the script


def test_script(tmp_path, capsys):
    """The command line of the README with smaller numbers: record, train, evaluate the checkpoint alone."""
    record(LEARNED, tmp_path / "data", num_demos=2, num_classifier_episodes=0)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"demo_paths": "./data/demos.pkl", "image_keys": "image", "setup_mode": LEARNED, "eval_episodes": 1}
    short = {"max_steps": 60, "training_starts": 55, "pretrain_steps": 2, "batch_size": 4, "views": 1}
    script = [sys.executable, ROOT / "train_hybrid.py", *command(options | {"save_dir": "./hybrid_ckpt"} | short)]
    done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {file.name for file in (tmp_path / "hybrid_ckpt").iterdir()}
    assert written >= RUN_OUTPUTS | {"evaluation.gif", "evaluation.json"}
    assert {name[:13] for name in written} >= {"buffer_online", "buffer_demo_0"}
    for text in (
        "settings:",
        "2 episodes",
        "backbone: the shipped one, ",
        "target entropy -3.5",
        "take memory as they fill",
        "step 0: ",
        "deterministic: ",
        "sampled: ",
    ):
        assert text in done.stdout + done.stderr, text
    settings = json.loads((tmp_path / "hybrid_ckpt/settings.json").read_text())
    assert settings["human"] == "scripted" and settings["seed"] == 0
    assert "Traceback" not in done.stderr

    figures = json.loads((tmp_path / "hybrid_ckpt/evaluation.json").read_text())["deterministic"]
    capsys.readouterr()
    train_hybrid.main(command(options | {"eval_ckpt": "./hybrid_ckpt/best.pt", "save_dir": "./evaluated"}))
    assert f"{figures['successes']} of 1 episodes solved without help" in capsys.readouterr().out
    again = json.loads((tmp_path / "evaluated/evaluation.json").read_text())["deterministic"]
    assert again == figures and not (tmp_path / "evaluated/last.pt").exists()


def test_evaluates_at_the_start_when_due_and_at_the_end(demos, tmp_path):
    train_hybrid.main(words(demos, tmp_path, max_steps=3 * LENGTH, eval_every=LENGTH + 1, eval_episodes=2))
    assert set(metrics(tmp_path, "eval_success")) == {0, 2 * LENGTH, 3 * LENGTH}
    assert set(metrics(tmp_path, "eval_sampled")) == {0, 2 * LENGTH, 3 * LENGTH}
    assert content(tmp_path)["step"] == 3 * LENGTH


def test_the_line_of_an_evaluation_comes_when_the_human_may_take_over(demos, tmp_path, monkeypatch, capsys):
    """What is typed while the run is saved and its curves are drawn is forgotten at the next episode's start."""
    monkeypatch.setattr(train_hybrid.HybridTraining, "draw", lambda self, log: print("drawn"))
    train_hybrid.main(words(demos, tmp_path, max_steps=LENGTH))
    said = capsys.readouterr().out
    assert said.index("drawn") < said.index("step 0:") < said.rindex("drawn") < said.index(f"step {LENGTH}:")


def test_an_evaluation_of_more_or_fewer_episodes_than_asked_for_says_why():
    assert [training_evaluate.differs(Evaluation(1, n, [], [], {}), 20).partition(",")[0] for n in (60, 20, 7)] == [
        "; 60",
        "",
        "; 7 of 20",
    ]


def test_stops_when_success_holds_and_keeps_the_averaged_policy(demos, tmp_path, capsys):
    train_hybrid.main(words(demos, tmp_path, max_steps=10 * LENGTH, eval_episodes=2, stop_at=0.5))  # one can be solved
    assert "; 6, since the first 2 reached --stop_at: 4 others followed" in capsys.readouterr().out
    saved = content(tmp_path)
    assert saved["step"] == 0 and saved["progress"]["best"] == 0.5 and saved["progress"]["solved"]
    best, last = load_checkpoint(tmp_path / "best.pt")["modules"], saved["agent"]["modules"]
    assert equal(best["actor"], last["average_actor"]) and equal(best["online"], last["target"])
    assert not equal(best["actor"], last["actor"])


def test_a_run_that_stopped_as_solved_goes_on_when_more_is_wanted(demos, tmp_path):
    settings = {"eval_episodes": 2, "max_steps": 2 * LENGTH}
    train_hybrid.main(words(demos, tmp_path, stop_at=0.5, **settings))
    train_hybrid.main(words(demos, tmp_path, stop_at=0.4, resume=True, **settings))
    assert content(tmp_path)["step"] == 0
    train_hybrid.main(words(demos, tmp_path, stop_at=1.0, resume=True, **settings))
    assert content(tmp_path)["step"] == 2 * LENGTH


def test_of_a_runs_checkpoint_the_policy_that_acted_is_evaluated(demos, tmp_path, monkeypatch, capsys):
    train_hybrid.main(words(demos, tmp_path, max_steps=LENGTH))
    used = []
    monkeypatch.setattr(train_hybrid, "report_evaluation", lambda agent, *_, **__: used.append(modules(agent)))
    for name in ("last.pt", "best.pt"):
        out = {"save_dir": None, "eval_ckpt": tmp_path / name}
        train_hybrid.main(words(demos, tmp_path, **out))
        assert ("the averaged policy is used" in capsys.readouterr().out) == (name == "last.pt")
    last, best = content(tmp_path)["agent"]["modules"], load_checkpoint(tmp_path / "best.pt")["modules"]
    assert equal(used[0]["actor"], last["average_actor"]) and not equal(used[0]["actor"], last["actor"])
    assert equal(used[0]["online"], last["target"]) and equal(used[1]["actor"], best["actor"])


def test_a_run_of_an_older_version_that_counted_its_passes_goes_on(demos, tmp_path):
    train_hybrid.main(words(demos, tmp_path, max_steps=LENGTH))
    saved = content(tmp_path)
    saved["progress"]["passed"] = saved["progress"].pop("solved") + 0
    torch.save(saved, tmp_path / "last.pt")
    train_hybrid.main(words(demos, tmp_path, max_steps=2 * LENGTH, resume=True))
    assert content(tmp_path)["step"] == 2 * LENGTH and content(tmp_path)["progress"]["solved"] is False


def test_who_passes_has_to_pass_on_other_episodes(demos, tmp_path, monkeypatch):
    runs = []

    def record(policy, env, episodes, **options):
        runs.append((options["seed"], episodes))
        return evaluate(policy, env, episodes, **options)

    monkeypatch.setattr(training_evaluate, "evaluate", record)
    train_hybrid.main(words(demos, tmp_path, max_steps=10 * LENGTH, eval_episodes=2, stop_at=0.5))
    assert runs[:2] == [(EVAL_SEED, 2), (EVAL_SEED + 2, 4)] and {seed for seed, _ in runs[2:]} == {FINAL_SEED}


# ---------------------------------------------------------------- what is stored


def test_interventions_go_to_both_buffers_with_the_human_action(demos, tmp_path):
    run = training(demos, tmp_path, env="TinyHuman-v0")
    before = len(run.learner.demo)
    episode(run), episode(run)
    assert len(run.learner.online) == 2 * LENGTH and len(run.learner.demo) == before + 2 * len(HUMAN_STEPS)
    online = [b for b in run.learner.online.in_order(1)]
    executed = np.stack(run.eval_env.unwrapped.executed)
    assert np.array_equal(np.concatenate([b["actions"] for b in online]), executed)
    helped = [b for b in run.learner.demo.in_order(1)][before:]
    assert all((b["actions"] == 0.5).all() for b in helped)
    for copied, place in zip(helped, (1, 2, LENGTH + 1, LENGTH + 2)):
        for key in ("observations", "next_observations"):
            assert torch.equal(copied[key]["image"], online[place][key]["image"])
    pace = run.actor.pace.figures()
    assert run.actor.figures() == pace | {
        "train_success": 0.5,
        "train_success_unaided": 0.0,
        "helped_steps": 2 / LENGTH,
        "helped_episodes": 1.0,
        "idle_corrections": 0.0,
    }


@pytest.mark.parametrize("entry, idle", [(0.0, 1.0), (0.5, 0.0)])  # 0.5: one key, pressed again and again
def test_corrections_that_are_all_0_are_noticed(entry, idle, demos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tiny_env, "HUMAN_STEPS", range(1, LENGTH))
    monkeypatch.setattr(tiny_env.TinyEnv, "human_action", np.full(6, entry, np.float32))
    train_hybrid.main(words(demos, tmp_path, env="TinyHuman-v0", max_steps=5 * LENGTH, stop_at=1, eval_every=100))
    assert capsys.readouterr().out.count("the human's actions of a whole episode are 0 in every entry") == idle
    assert metrics(tmp_path, "alarm_corrections") == ({5 * LENGTH: 1.0} if idle else {})
    assert metrics(tmp_path, "idle_corrections") == {5 * LENGTH: idle}


def test_the_policys_gripper_commands_are_counted(demos, tmp_path):
    """Of two grippers the least, over the last 20 episodes."""
    actor = training(demos, tmp_path).actor
    actor.agent.num_grippers, commands = 2, iter(())
    actor.agent.sample_actions = lambda obs, averaged: np.array(
        [0, 0, next(commands), 0, 0, next(commands)], np.float32
    )

    def episode(*first):
        nonlocal commands
        commands = iter([*first, *[0] * (2 * LENGTH)])
        actor.start_episode()
        while not actor.act(0)[0]["dones"]:
            pass
        return actor.figures().get("gripper_closes"), actor.figures().get("gripper_opens")

    assert {episode(-1, 1, -1, 0, 0, 1) for _ in range(19)} == {(None, None)}
    assert episode(-1, 1) == (0, 0)  # left never opens, right never closes
    assert episode(-1, -1, 1, 1, -1, -1) == (2, 1)
    for _ in range(10):  # in turn
        episode(-1, 0), episode(0, -1)
    assert episode() == (9, 0)


def test_a_human_at_the_keyboard(demos, tmp_path, monkeypatch):
    """Takes over in the second step, moves twice, ends the episode with success; in evaluations only the verdict."""
    keys = iter(["", "", "", "t", "w", "a", "ty"] + [""] * 1000)

    class Terminal:
        def read(self, timeout=0.0):
            return next(keys)

    monkeypatch.setattr("pytorch_serl.envs.human.keyboard.Terminal", Terminal)
    run = training(demos, tmp_path, human="keyboard", env="TinySilent-v0", reward="human", seed=1)
    before = len(run.learner.demo)
    run.actor.start_episode()
    assert [run.act(step) for step in range(4)] == [False, False, False, True]
    online = next(run.learner.online.in_order(10))
    assert online["rewards"].tolist() == [0, 0, 0, 1] and online["masks"].tolist() == [1, 1, 1, 0]
    assert online["actions"][1:3].tolist() == [[0.5, 0, 0, 0, 0, 0], [0, 0.5, 0, 0, 0, 0]]
    assert len(run.learner.demo) == before + 2 and run.actor.solved
    assert [step.get("human_verdict") for step in read_episode(episode_files(tmp_path)[0])] == [None] * 3 + [1.0]
    assert evaluate(Still(), run.eval_env, 1).successes == 0


def test_a_human_who_judges_and_moves_nothing_is_not_imitated(demos, tmp_path, monkeypatch):
    keys = iter(["", "", "", "t", "w", "n"] + [""] * 100)
    terminal = type("Terminal", (), {"read": lambda self, timeout=0.0: next(keys)})
    monkeypatch.setattr("pytorch_serl.envs.human.keyboard.Terminal", terminal)
    run = training(demos, tmp_path, human="keyboard", env="TinySilent-v0", reward="human")
    before = len(run.learner.demo)
    run.actor.start_episode()
    assert [run.act(step) for step in range(3)] == [False, False, True]
    assert len(run.learner.demo) == before + 1 and next(run.learner.online.in_order(10))["actions"][-1].abs().max() == 0


def test_a_full_buffer_of_corrections_is_said(demos, tmp_path, capsys):
    run = training(demos, tmp_path, env="TinyHuman-v0", buffer_capacity=2)
    for _ in range(20):
        episode(run)
    assert capsys.readouterr().out.count("the oldest, the demos, make room") == 1


@pytest.mark.parametrize("imitate", [True, False, None])
def test_episodes_solved_alone_join_the_demos(imitate, demos, tmp_path):
    words = {} if imitate is None else {"imitate_successes" if imitate else "no-imitate_successes": True}
    run = training(demos, tmp_path, **words)  # the default without the scripted human is True
    before = len(run.learner.demo)
    episode(run), episode(run)  # the second one times out
    assert len(run.learner.demo) == before + (0 if imitate is False else LENGTH)
    joined = [b["actions"] for b in run.learner.demo.in_order(1)][before:]
    assert all(torch.equal(a, b["actions"]) for a, b in zip(joined, run.learner.online.in_order(1)))
    helped = training(demos, tmp_path, env="TinyHuman-v0", **words)
    episode(helped)
    assert len(helped.learner.demo) == before + len(HUMAN_STEPS)


def test_what_is_imitated_has_the_gripper_commands_in_force(demos, tmp_path):
    commands = [[0, -1, 0, 1, 0], [0, 0, 1, 0, 0]]  # of two episodes
    path = make_demos(tmp_path / "grippers.pkl", episodes=2, length=5, action_dim=7)
    transitions = pickle.loads(path.read_bytes())
    for transition, given in zip(transitions, sum(commands, [])):
        transition["actions"][-1] = given
    path.write_bytes(pickle.dumps(transitions))
    read, run = train_hybrid.read_demos(path, "image", LEARNED), training(demos, tmp_path / "run")
    buffer = ReplayBuffer(20, ["image"])
    build.add_demos(buffer, read, run.agent, views=1)
    assert next(buffer.in_order(20))["actions"][:, -1].tolist() == [0, -1, -1, 1, 1, 0, 0, 1, 1, 1]
    assert [t["actions"][-1] for t in read.transitions] == sum(commands, [])

    learner, before = run.learner, len(run.learner.demo)
    learner.agent.num_grippers = 1  # the last of six entries
    steps = [t | {"actions": t["actions"][[0, 1, 2, 3, 4, 6]]} for t in transitions]
    for step, human in zip(steps, [False, False, True, True, True, True, False, False, True, True]):
        stored = {k: build.to_storage(run.agent, step[k], views=1) for k in ("observations", "next_observations")}
        learner.add(step | stored, to_demos=human)
        if step["dones"]:
            learner.end_episode(False)
    online, imitated = (next(b.in_order(100))["actions"][:, -1].tolist() for b in (learner.online, learner.demo))
    assert online == sum(commands, []) and imitated[before:] == [-1, 1, 1, 0, 1, 1]


def test_failed_demos_that_are_imitated_are_said(tmp_path, capsys):
    path = make_demos(tmp_path / "demos.pkl", episodes=3)
    transitions = pickle.loads(path.read_bytes())
    transitions[-1].update(rewards=0.0, masks=1.0)
    path.write_bytes(pickle.dumps(transitions))
    for main, options in ((train_hybrid, {}), (train_offline, {"algo": "bc"}), (train_offline, {"algo": "awac"})):
        line = {"demo_paths": path, "image_keys": "image", "setup_mode": FIXED, "device": "cpu", "batch_size": 4}
        line |= {"max_steps": 1, "views": 1, "save_dir": tmp_path / "run", "overwrite": True} | options
        hybrid = {"env": "Tiny-v0", "learner": "inline", "pretrain_steps": 0, "eval_episodes": 1}
        main.main(command(line | (hybrid if main is train_hybrid else {})))
        said = "1 demo episodes end without success, and here they are imitated" in capsys.readouterr().out
        assert said == (options.get("algo") != "awac")


def test_demos_without_state_in_an_environment_with_one(tmp_path):
    demos = make_demos(tmp_path / "demos.pkl", state=False)
    train_hybrid.main(words(demos, tmp_path / "out", env="TinyHuman-v0"))
    assert content(tmp_path / "out")["step"] == 2 * LENGTH


def test_rounding_of_a_human_action_is_clipped():
    action = np.zeros(3, np.float32)
    human = np.array([1.000001, -1.000001, 0.5])
    assert executed_action({"intervene_action": human}, action).tolist() == [1.0, -1.0, 0.5]
    assert executed_action({}, action + 0.25).tolist() == [0.25] * 3
    for wrong in ([1.1, 0, 0], [np.nan, 0, 0], [0, 0]):
        with pytest.raises(ContractError, match=r"wanted \(3,\) numbers"):
            executed_action({"intervene_action": np.array(wrong)}, action)


@pytest.mark.parametrize("seed", [0, 15_000, 123_456])
def test_training_episodes_are_no_evaluation_episodes(seed, demos, tmp_path):
    run, seeds = training(demos, tmp_path, seed=seed), []
    reset = run.actor.env.reset
    run.actor.env.reset = lambda seed: seeds.append(seed) or reset(seed=seed)
    episode(run), episode(run)
    assert seeds[1] == seeds[0] + 1 and max(seeds) < EVAL_SEED < FINAL_SEED


def test_a_small_buffer_keeps_the_demos(demos, tmp_path):
    run = training(demos, tmp_path, buffer_capacity=3)
    assert len(run.learner.demo) == 24


def test_a_time_limit_bootstraps_and_success_does_not(demos, tmp_path):
    run = training(demos, tmp_path)
    episode(run), episode(run)
    batch = next(run.learner.online.in_order(100))
    ends = [LENGTH - 1, 2 * LENGTH - 1]  # solved, timed out
    assert batch["masks"].tolist() == [0.0 if i == ends[0] else 1.0 for i in range(2 * LENGTH)]
    assert batch["rewards"].tolist() == [float(i == ends[0]) for i in range(2 * LENGTH)]


def test_batches_are_half_demos_half_online(demos, tmp_path):
    run = training(demos, tmp_path)
    episode(run)
    batch = run.learner.sample(6)
    assert batch["is_demo"].tolist() == [0, 0, 0, 1, 1, 1]
    stored = next(run.learner.online.in_order(100))["actions"], next(run.learner.demo.in_order(100))["actions"]
    for row, source in zip(batch["actions"], (0, 0, 0, 1, 1, 1)):
        assert (stored[source] == row).all(-1).any()


def test_a_cycle_updates_critics_twice_and_the_actor_once_and_cloning_fades(demos, tmp_path, monkeypatch):
    calls = []

    def update(agent, batch, critic_only=False, **options):
        calls.append((critic_only, options))
        return {"q": 0.0}

    monkeypatch.setattr(SACAgent, "update", update)
    run = training(demos, tmp_path, cta_ratio=3, cycles_per_step=2, clone_weight=8, clone_steps=100)
    episode(run)
    run.learner.learn(25)
    alone = {"critics_train_encoder": False}  # cloning: else what the critics learn would undo it
    clone = {"clone_std": 0.05, "clone_dropout": 0.0}
    assert calls == [(True, alone), (True, alone), (False, {"clone_weight": 6.0} | clone | alone)] * 2
    run.learner.learn(1000)
    critics = {"critics_train_encoder": True}
    assert calls[-3:] == [(True, critics)] * 2 + [(False, {"clone_weight": 0.0} | clone | critics)]
    run.learner.pretrain()  # at the weight of the first online step, for Adam's sake
    cloning = {"sac_weight": 0.0, "clone_weight": 8} | clone | alone
    assert calls[-1] == (False, {"train_critic": True} | cloning)

    monkeypatch.setattr(learner_module, "CRITIC_STEPS", 2)
    run = training(demos, tmp_path / "long", pretrain_steps=5, clone_weight=8)
    for _ in range(5):
        run.learner.pretrain()
    trained = [False, False, False, True, True]  # the critics, which cost most, in the last ones
    assert calls[-5:] == [(False, {"train_critic": critics} | cloning) for critics in trained]


def test_the_pretraining_sees_long_demos_as_often_as_short_ones(demos, tmp_path):
    options = words(demos, tmp_path)
    del options[(place := options.index("--pretrain_steps")) : place + 2]
    for transitions, batch_size, steps in ((300, 64, 1000), (1025, 64, 2403), (1025, 256, 1000)):
        args = train_hybrid.parse_args([*options, "--batch_size", str(batch_size)])
        assert args.training_starts == 4 and args.pretrain_steps is None
        choose_for_demos(args, transitions)
        assert args.pretrain_steps == steps
    choose_for_demos(args, 10**6)
    assert args.pretrain_steps == 1000


def test_hg_dagger_clones_demos_and_corrections_and_does_nothing_else(demos, tmp_path, monkeypatch):
    calls, update = [], SACAgent.update
    monkeypatch.setattr(SACAgent, "update", lambda self, *args, **kw: calls.append(kw) or update(self, *args, **kw))
    run = training(demos, tmp_path, algo="hg_dagger", env="TinyHuman-v0", cta_ratio=2, cycles_per_step=2)
    episode(run)
    assert len(run.learner.demo) == 24 + len(HUMAN_STEPS)
    info = run.learner.learn(LENGTH)
    clone = {"clone_weight": 20.0, "clone_std": 0.05, "clone_dropout": 0.0}
    assert calls == [{"train_critic": False, "sac_weight": 0.0} | clone] * 4
    assert {name for name in info if name.endswith("_loss")} == {"clone_loss"}
    with pytest.raises(SystemExit):
        training(demos, tmp_path, algo="hg_dagger", pretrain_steps=0)


# ---------------------------------------------------------------- success


class Verdicts:
    """A classifier that says what it is told."""

    image_keys, image_shapes = ["image"], {"image": (32, 32)}

    def __init__(self, *verdicts):
        self.verdicts = list(verdicts)

    def predict_success(self, obs):
        success = self.verdicts.pop(0)
        return 0.9 if success else 0.1, success


def test_classifier_gives_the_reward_and_ends_the_episode():
    env = ClassifierReward(TinyEnv(), Verdicts(False, True))
    env.reset(seed=0)
    assert env.step(np.zeros(6))[1:4] == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step(np.zeros(6))
    assert (reward, terminated, truncated, info["success_probability"]) == (1.0, True, False, 0.9)
    assert info["succeed"] is False  # the environment has its own verdict


@pytest.mark.parametrize(("seed", "ends"), [(0, (True, False)), (1, (False, True))])
def test_a_silent_classifier_leaves_the_environment_its_endings(seed, ends):
    env = ClassifierReward(TinyEnv(report_success=False), Verdicts(*[False] * LENGTH))
    env.reset(seed=seed)
    *_, last = (env.step(np.zeros(6)) for _ in range(LENGTH))
    assert (last[1], *last[2:4]) == (0.0, *ends) and last[4]["succeed"] is False


@pytest.mark.parametrize(
    ("step", "goal", "options", "said"),
    [
        (-1.0, 0.0, {"reward": "classifier"}, "rewards go from -1 to 0, but what a classifier or a human"),
        (0.0, 10.0, {"reward": "classifier"}, "rewards go from 0 to 10"),
        (0.0, 1.0, {"reward": "classifier"}, None),
        (-1.0, 0.0, {"env": "no_such_package:X-v0"}, None),
    ],
)
def test_a_verdict_on_another_scale_than_the_demos_rewards_is_said(step, goal, options, said, tmp_path, capsys):
    transitions = pickle.loads(make_demos(tmp_path / "demos.pkl").read_bytes())
    for t in transitions:
        t["rewards"] = goal if t["rewards"] else step
    (tmp_path / "demos.pkl").write_bytes(pickle.dumps(transitions))
    missing = {"classifier_ckpt": tmp_path / "missing.pt"} if "reward" in options else {}
    with pytest.raises(SystemExit):  # after the warning
        train_hybrid.main(words(tmp_path / "demos.pkl", tmp_path / "run", **options, **missing))
    out = capsys.readouterr().out
    assert said in out if said else "one critic cannot learn two scales" not in out


def test_success_takes_frames_in_a_row():
    env = ClassifierReward(TinyEnv(), Verdicts(True, False, True, True, True), frames=2)
    env.reset(seed=1)
    steps = [env.step(np.zeros(6)) for _ in range(4)]
    assert [step[1] for step in steps] == [0.0, 0.0, 0.0, 1.0]
    assert [steps[-1][4][name] for name in ("classifier_verdict", "env_verdict")] == [1.0, 0.0]
    env.reset(seed=1)  # frames of another episode do not count
    assert env.step(np.zeros(6))[1] == 0.0


def test_success_takes_the_state_too():
    env, verdicts = TinyEnv(), Verdicts(*[True] * LENGTH)
    env.reset = lambda **options: ({}, {})
    states = iter([[0, 0.1, -2], [0, 0.3, -2], [0, 0.3, -0.5], [0, 0.1, -0.5]])
    env.step = lambda action: ({"state": np.array(next(states), np.float32)}, 0.0, False, False, {})
    env = ClassifierReward(env, verdicts, conditions=state_conditions(["1>0.2", "2<-1e0"]))
    env.reset()
    assert [env.step(None)[4]["succeed"] for _ in range(4)] == [False, True, False, False]
    for word in ("1=2", "x>1", ">1", "1>", "1>e", "-1>0"):
        with pytest.raises(ValueError, match="is no condition; wanted entry of the state"):
            state_conditions([word])
    with pytest.raises(ValueError, match=r"--success_state names the entries \[3\], the environment's state has 3"):
        ClassifierReward(TinyEnv(), verdicts, conditions=state_conditions(["3>0"]))


def test_a_classifier_of_other_picture_sizes_is_refused():
    classifier = Verdicts()
    classifier.image_shapes = {"image": (128, 96)}
    with pytest.raises(ValueError, match=r"camera 'image' is \(32, 32, 3\), the classifier was trained on \(128, 96\)"):
        ClassifierReward(TinyEnv(), classifier)


def test_the_classifiers_mistakes_are_counted_and_shown(demos, tmp_path):
    """The environment calls the last step of every second episode success; the classifier also the second of one."""
    run = training(demos, tmp_path)
    always = [False] * (LENGTH - 1) + [True]
    run.actor.env = ClassifierReward(TinyEnv(), Verdicts(*always, False, True, *[False] * LENGTH))
    episode(run)
    assert run.actor.figures()["false_successes"] == 0.0
    run.actor.start_episode()
    assert [run.act(step) for step in range(2)] == [False, True]
    assert run.actor.figures()["false_successes"] == 0.5
    episode(run)
    assert run.actor.figures()["false_successes"] == 0.5
    shown = sorted((tmp_path / "called_success").iterdir())
    assert [path.name for path in shown] == [f"00000{i}_0.900.{kind}" for i in (0, 1) for kind in ("pkl", "png")]
    assert Image.open(shown[1]).size == (64, 64)
    (tmp_path / "success").mkdir(), shown[0].rename(tmp_path / "success" / shown[0].name)  # the other one is none
    frames = read_classifier_frames(tmp_path / "success", tmp_path / "called_success", ["image"])
    assert frames.labels.tolist() == [1, 0]
    steps = read_episode(episode_files(tmp_path)[1])
    assert [(s["classifier_verdict"], s["env_verdict"], s["succeed"]) for s in steps] == [(0, 0, 0), (1, 0, 0)]


def test_a_camera_of_depth_is_no_picture(demos, tmp_path):
    """Nor is it wanted: what is not in --image_keys is left alone."""

    class Deep(gym.ObservationWrapper):
        def observation(self, obs):
            return obs | {"depth": np.zeros((32, 32, 1), np.float32)}

    run = training(demos, tmp_path)
    run.actor.env = ClassifierReward(Deep(TinyEnv()), Verdicts(True))
    run.actor.start_episode()
    assert run.act(0)
    assert Image.open(tmp_path / "called_success/000000_0.900.png").size == (64, 64)


def test_nobody_knows_the_mistakes_where_only_the_classifier_judges(demos, tmp_path):
    run = training(demos, tmp_path, env="TinySilent-v0")
    run.actor.env = ClassifierReward(run.actor.env, Verdicts(*[False] * (LENGTH - 1), True))
    episode(run)
    assert "false_successes" not in run.actor.figures()


def test_evaluation_by_classifier_where_the_environment_has_no_verdict():
    env = ClassifierReward(TinyEnv(report_success=False), Verdicts(False, True, *[False] * LENGTH))
    result = evaluate(Still(), env, 2, seed=1)
    assert (result.successes, result.steps_to_success, result.helped) == (1, [2], 0)
    never = TinyEnv()
    step = never.step
    never.step = lambda action: (*step(action)[:4], {"succeed": False})  # there is no sensor
    result = evaluate(Still(), ClassifierReward(never, Verdicts(False, True, *[False] * LENGTH)), 2, seed=1)
    assert (result.successes, result.denied) == (0, 1)
    assert "1 more by the classifier, not by info['succeed'] (without a sensor that says so, leave" in str(result)
    helped = evaluate(Still(), TinyEnv(human=True), 2)
    assert (helped.successes, helped.helped) == (0, 2) and "2 with a human's help" in str(helped)
    with pytest.raises(ValueError, match="wanted 'succeed'"):
        evaluate(Still(), TinyEnv(report_success=False), 1)


@pytest.mark.parametrize(("share", "episodes"), [(0.5, 24), (0.51, 20)])
def test_a_hopeless_evaluation_ends_early(share, episodes):
    result = evaluate(Still(), TinyEnv(), 24, screen=share)  # half of the episodes can be solved
    assert (result.successes, result.episodes) == (episodes // 2, episodes)


class Uneven(TinyEnv):
    """Episodes of one to four steps, every second one solved; the reward says how well an action fits the picture."""

    def reset(self, *, seed=None, options=None):
        self.length = 1 + seed % 4
        self.obs, info = super().reset(seed=seed)
        return self.obs, info

    def step(self, action):
        reward = -abs(action - fitting(self.obs)).sum()
        self.obs, *_ = super().step(action)
        solved = self.steps == self.length and self.solvable
        return self.obs, reward, solved, self.steps == self.length and not solved, {"succeed": solved}


class Fitting:
    """Acts by the picture alone, in one observation and in many."""

    num_grippers, image_keys, most = 1, ["image"], 0

    def sample_actions(self, obs, argmax):
        self.most = max(self.most, len(obs["image"]) if obs["image"].ndim == 4 else 1)
        return fitting(obs)


def fitting(obs):
    six = obs["image"][..., 0, :2, :].reshape(*obs["image"].shape[:-3], 6)
    return six.astype(np.float32) // 86 - 1


@pytest.mark.parametrize("options", [{}, {"screen": 0.51}, {"record_episodes": 3}])
def test_episodes_side_by_side_are_those_one_after_another(options):
    policy = Fitting()
    one = evaluate(policy, Uneven(), 27, **options)
    assert policy.most == 1 and set(one.returns) == {0.0} and min(one.gripper_commands.values()) > 0
    many = evaluate(policy, [Uneven() for _ in range(5)], 27, **options)
    assert policy.most == 5 and len(many.frames) == len(one.frames)
    assert all(map(np.array_equal, many.frames, one.frames))
    one.frames = many.frames
    assert many == one and one.episodes == (20 if "screen" in options else 27)


def test_training_with_a_classifier(demos, tmp_path, capsys):
    classifier = RewardClassifier(["image"], device="cpu")
    classifier.threshold = 1.0  # never
    classifier.save(tmp_path / "classifier.pt")
    reward = {"reward": "classifier", "classifier_ckpt": tmp_path / "classifier.pt"}
    train_hybrid.main(words(demos, tmp_path / "never", env="TinySilent-v0", **reward))
    assert "do not let it reward a robot" not in capsys.readouterr().out
    recent = content(tmp_path / "never")["progress"]["recent"]
    assert [row[:3] for row in recent] == [[0.0, 0, LENGTH]] * 2
    classifier.threshold, classifier.validation = 0.0, {"informative": False}  # at once
    classifier.save(tmp_path / "classifier.pt")
    train_hybrid.main(words(demos, tmp_path / "always", env="TinySilent-v0", stop_at=0, max_steps=3, **reward))
    assert "classifier.pt: its validation frames do not show that it tells" in capsys.readouterr().out
    evaluation = json.loads((tmp_path / "always/evaluation.json").read_text())["deterministic"]
    assert evaluation["successes"] == 1 and evaluation["mean_steps_to_success"] == 1


def test_rewards_that_the_demos_do_not_know_end_the_run(demos, tmp_path, capsys):
    message = "gave the reward 5.0 (terminated True)"
    assert message in stopped_by(demos, tmp_path, capsys, env="TinyGenerous-v0")


def test_an_environment_without_verdict_is_refused(demos, tmp_path, capsys):
    refused(train_hybrid, capsys, "wanted 'succeed' (bool)", words(demos, tmp_path, env="TinySilent-v0"))


def test_a_wrong_correction_ends_the_run_and_the_run_goes_on(demos, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TinyEnv, "human_action", np.full(5, 0.5, np.float32))
        error = stopped_by(demos, tmp_path, capsys, env="TinyHuman-v0")
    assert "info['intervene_action'] is [0.5 0.5 0.5 0.5 0.5]; wanted (6,) numbers in [-1, 1]" in error
    train_hybrid.main(words(demos, tmp_path, env="TinyHuman-v0", resume=True))
    assert content(tmp_path)["step"] >= 2 * LENGTH


def stopped_by(demos, out, capsys, **changes):
    """The one line of a run that the environment ends; what was learned until then is saved."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train_hybrid.main(words(demos, out, **changes))
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(lines) == 1 and (out / "last.pt").exists()
    return lines[0]


# ---------------------------------------------------------------- resume and interruption


@pytest.mark.parametrize("human", [pytest.param("Tiny-v0", marks=pytest.mark.slow), "TinyHuman-v0"])
def test_resume_continues_bit_for_bit(human, demos, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    changes = {"env": human, "eval_every": 2 * LENGTH, "stop_at": 1.0, "eval_episodes": 2}
    train_hybrid.main(words(demos, once, max_steps=4 * LENGTH, **changes))
    train_hybrid.main(words(demos, twice, max_steps=2 * LENGTH, **changes))
    np.random.seed(99), torch.manual_seed(99)
    train_hybrid.main(words(demos, twice, max_steps=4 * LENGTH, resume=True, **changes))
    assert_same_run(once, twice)
    assert metrics(once, "eval_success") == metrics(twice, "eval_success")


def test_corrections_have_crops_as_demos_have(demos, tmp_path, monkeypatch):
    """What a correction led to is stored with all views beside the demos, and with one among the online experience."""
    run = training(demos, tmp_path, env="TinyHuman-v0", views=3)
    assert run.actor.views == 1  # a robot beside a CPU does not wait for crops
    monkeypatch.setattr(TinyEnv, "metadata", {"simulated": True})
    run = training(demos, tmp_path, env="TinyHuman-v0", views=3)
    episode(run)
    first, second = HUMAN_STEPS  # counted from 1; the frame before the first was seen before anybody took over
    assert second == first + 1 and len(run.learner.demo) == 24 + len(HUMAN_STEPS)
    assert run.learner.online._frames["image"].shape[1] == 1
    frames, columns = run.learner.demo._frames["image"], run.learner.demo._columns
    for row, obs_has_crops in ((24, False), (25, True)):
        obs, next_obs = frames[columns["frame"][row]], frames[columns["next_frame"][row]]
        assert (obs[0] != obs[1]).any() == obs_has_crops
        assert (next_obs[0] != next_obs[1]).any() and (next_obs[1] != next_obs[2]).any()
    assert columns["next_frame"][24] == columns["frame"][25]  # one frame, stored once


def test_a_killed_run_keeps_what_came_after_its_checkpoint(demos, tmp_path, monkeypatch, capsys):
    """Steps on disk that last.pt does not know: two whole episodes and a part of a third."""
    out, changes = tmp_path / "out", {"env": "TinyHuman-v0", "eval_every": 100, "stop_at": 1.0}

    class Killed(BaseException):
        pass

    act = train_hybrid.HybridTraining.act

    def killed(run, step):
        if step == 2 * LENGTH + 4:
            raise Killed
        return act(run, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train_hybrid.HybridTraining, "act", killed)
        train_hybrid.main(words(demos, out, max_steps=4 * LENGTH, **changes))
    assert content(out)["step"] == 0
    before = (out / "last.pt").read_bytes()
    run = training(demos, out, **changes)
    assert run.load() == 2 * LENGTH + 4 and run.actor.episode == 3
    assert "3 episodes (16 steps) were recorded after the checkpoint" in capsys.readouterr().out
    assert before == (out / "last.pt").read_bytes() and equal(modules(run.agent), content(out)["agent"]["modules"])
    stored = next(run.learner.online.in_order(100))
    files = [read_episode(path) for path in episode_files(out).values()]
    assert np.array_equal(stored["actions"], [t["actions"] for episode in files for t in episode])
    assert stored["dones"].nonzero().flatten().tolist() == [LENGTH - 1, 2 * LENGTH - 1, 2 * LENGTH + 3]
    assert stored["masks"].tolist() == [0.0 if i == LENGTH - 1 else 1.0 for i in range(2 * LENGTH + 4)]
    assert len(run.learner.demo) == 24 + 3 * len(HUMAN_STEPS)
    led_to = [[False, *(t["corrected"] for t in episode)] for episode in files]  # by a correction, of every frame
    pairs = [pair for flags in led_to for pair in zip(flags, flags[1:])]
    recorded = [t for episode in files for t in episode]
    for batch, transition, corrected in zip(run.learner.online.in_order(1), recorded, pairs, strict=True):
        for key, beside_crops in zip(("observations", "next_observations"), corrected):
            views = run.args.views if beside_crops else 1  # a frame is rounded otherwise beside its crops
            wanted = build.to_storage(run.agent, transition[key], views)["image"][0]
            assert np.array_equal(batch[key]["image"][0], wanted)
    train_hybrid.main(words(demos, out, max_steps=4 * LENGTH, resume=True, **changes))
    assert content(out)["step"] >= 4 * LENGTH and list(episode_files(out)) == [0, 1, 2, 3, 4]
    assert len(training(demos, out, **changes).learner.online) == 0
    train_hybrid.main(words(demos, out, max_steps=1, overwrite=True, **changes))
    assert list(episode_files(out)) == [0]


def test_a_learner_that_takes_another_ones_place_reads_what_the_checkpoint_lacks_and_no_more(demos, tmp_path):
    """The checkpoint has the first of four recorded episodes, and three of them were handed over."""
    run = training(demos, tmp_path, env="TinyHuman-v0")
    episode(run)
    run.learner.save(LENGTH, run.state())
    episode(run), episode(run)
    handed_over = len(run.learner.online)
    run.actor.start_episode()
    run.actor.act(2)
    successor = training(demos, tmp_path, env="TinyHuman-v0").learner
    step, progress = successor.load()
    assert (step, progress["episode"]) == (LENGTH, 1) and successor.recover(1, end=3) == (3, 2 * LENGTH)
    assert handed_over == len(successor.online) == 3 * LENGTH and len(successor.demo) == len(run.learner.demo)
    again = training(demos, tmp_path, env="TinyHuman-v0")
    assert again.load() == 3 * LENGTH + 1 == len(again.learner.online) and again.actor.episode == 4


def test_an_episode_solved_alone_joins_the_demos_also_when_recovered(demos, tmp_path):
    torch.manual_seed(0)
    run = training(demos, tmp_path)
    episode(run), episode(run)  # solved; timed out
    torch.manual_seed(0)  # the same random backbone
    again = training(demos, tmp_path)
    assert again.recover(0) == 2 * LENGTH
    for name in ("online", "demo"):
        pairs = zip(getattr(run.learner, name).in_order(1), getattr(again.learner, name).in_order(1), strict=True)
        assert all(equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("what", ["checkpoint", "episode"])
def test_a_full_disk_ends_in_one_line_with_the_last_checkpoint_intact(what, demos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    act = train_hybrid.HybridTraining.act

    def fill_up(run, step):
        if step == LENGTH + 2:
            full = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # noqa: E731
            if what == "checkpoint":
                patch.setattr(os, "fsync", full)
            else:
                patch.setattr("pytorch_serl.data.episode_files.open", full, raising=False)
        return act(run, step)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        patch.setattr(train_hybrid.HybridTraining, "act", fill_up)
        line = words(demos, out, max_steps=4 * LENGTH, eval_every=LENGTH, stop_at=1.0)
        run_script(lambda: train_hybrid.main(line))
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.value.code == 2 and text.startswith("error: ") and "cannot be written: No space left" in text
    assert content(out)["step"] == LENGTH and not list(out.glob(".*.tmp"))
    train_hybrid.main(words(demos, out, max_steps=4 * LENGTH, eval_every=LENGTH, stop_at=1.0, resume=True))
    assert content(out)["step"] >= 4 * LENGTH


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_finishes_the_step_and_saves(number, demos, tmp_path, monkeypatch, capsys):
    act = train_hybrid.HybridTraining.act

    def interrupted(run, step):
        if step == LENGTH + 2:
            signal.raise_signal(number)
        return act(run, step)

    monkeypatch.setattr(train_hybrid.HybridTraining, "act", interrupted)
    with pytest.raises(SystemExit) as error:
        train_hybrid.main(words(demos, tmp_path, eval_every=100, stop_at=1.0))
    assert error.value.code == 130
    assert f"environment step {LENGTH + 3} is saved in {tmp_path / 'last.pt'}" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    train_hybrid.main(words(demos, tmp_path, eval_every=100, stop_at=1.0, resume=True, max_steps=3 * LENGTH + 3))
    saved = content(tmp_path)
    assert saved["step"] == 3 * LENGTH + 3 and saved["progress"]["episode"] == 4
    assert saved["sampling"].keys() == {"online", "demo"}


def test_an_error_of_the_environment_saves_first(demos, tmp_path, monkeypatch, capsys):
    act = train_hybrid.HybridTraining.act

    def broken(run, step):
        if step == LENGTH + 2:
            raise ConnectionError("the arm does not answer")
        return act(run, step)

    monkeypatch.setattr(train_hybrid.HybridTraining, "act", broken)
    with pytest.raises(ConnectionError):
        train_hybrid.main(words(demos, tmp_path, eval_every=100, stop_at=1.0))
    assert f"environment step {LENGTH + 2} is saved in {tmp_path / 'last.pt'}" in capsys.readouterr().out
    assert content(tmp_path)["step"] == LENGTH + 2


def test_numbers_that_went_wrong_are_not_saved(demos, tmp_path, monkeypatch):
    update = SACAgent.update

    def spoil(agent, batch, **options):
        info = update(agent, batch, **options)
        return info if options.get("sac_weight") == 0.0 else info | {"q": info["critic_loss"] * float("nan")}

    monkeypatch.setattr(SACAgent, "update", spoil)
    with pytest.raises(FloatingPointError, match=r"environment step 4: \{'q': nan\}; the batch is in .*nan_batch.pt"):
        train_hybrid.main(words(demos, tmp_path, eval_every=100))
    assert content(tmp_path)["step"] == 0
    saved = load_checkpoint(tmp_path / "nan_batch.pt")
    assert [b["actions"].shape for b in saved["batches"]] == [(4, 6)] * 2 and saved["batches"][1]["is_demo"].sum() == 2


def test_a_diverged_agent_is_not_saved_over_a_good_one(demos, tmp_path, monkeypatch):
    act = train_hybrid.HybridTraining.act

    def diverged(run, step):
        if step == LENGTH + 2:
            next(run.agent.average_actor.parameters()).data.fill_(float("nan"))
        return act(run, step)

    monkeypatch.setattr(train_hybrid.HybridTraining, "act", diverged)
    with pytest.raises(FloatingPointError, match="the action is NaN"):
        train_hybrid.main(words(demos, tmp_path, eval_every=100, stop_at=1.0))
    assert content(tmp_path)["step"] == 0
    run = training(demos, tmp_path)
    next(run.agent.online.parameters()).data.fill_(float("nan"))
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="holds NaN or infinity and is not saved"):
        run.learner.save(5, run.progress)
    with pytest.raises(FloatingPointError, match="is not saved"):
        run.agent.save(tmp_path / "best.pt")
    assert before == (tmp_path / "last.pt").read_bytes()


def test_interrupted_while_encoding_starts_anew(demos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(build, "to_storage", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            train_hybrid.main(words(demos, out))
    train_hybrid.main(words(demos, out))
    assert content(out)["step"] == 2 * LENGTH


def test_interrupted_pretraining_goes_on(demos, tmp_path, monkeypatch, capsys):
    once, twice = tmp_path / "once", tmp_path / "twice"
    train_hybrid.main(words(demos, once, pretrain_steps=4))
    step, count = SACAgent._step, 0

    def interrupted(agent, losses):
        nonlocal count
        count += 1
        if count == 2:
            signal.raise_signal(signal.SIGINT)
        step(agent, losses)

    monkeypatch.setattr(SACAgent, "_step", interrupted)
    with pytest.raises(SystemExit):
        train_hybrid.main(words(demos, twice, pretrain_steps=4))
    assert content(twice)["progress"]["pretrained"] == 2
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    train_hybrid.main(words(demos, twice, pretrain_steps=4, resume=True))
    assert_same_run(once, twice)


def test_starts_from_an_offline_agent(demos, tmp_path, monkeypatch):
    import train_offline

    offline = {"demo_paths": demos, "image_keys": "image", "setup_mode": FIXED, "views": 1, "batch_size": 4}
    train_offline.main(command(offline | {"max_steps": 1, "save_dir": tmp_path / "offline"}))
    best = tmp_path / "offline/best.pt"
    monkeypatch.setattr(Learner, "learn", lambda self, step: {})
    train_hybrid.main(words(demos, tmp_path / "hybrid", init_ckpt=best, max_steps=1))
    agent = content(tmp_path / "hybrid")["agent"]
    kept = load_checkpoint(best)["modules"]  # without the shipped backbone, which is named by its hash
    assert equal({name: agent["modules"][name] for name in kept}, kept)  # no pretraining on top
    assert len(kept) == len(agent["modules"]) - 1
    last = tmp_path / "offline/last.pt"  # this one has optimisers
    train_hybrid.main(words(demos, tmp_path / "again", init_ckpt=last, max_steps=1))
    for run in ("hybrid", "again"):
        optimizers = content(tmp_path / run)["agent"]["optimizers"].values()
        assert not any(optimizer["state"] for optimizer in optimizers)
    found = load_checkpoint(last)["agent"]["optimizers"]
    assert all(optimizer["state"] for name, optimizer in found.items() if name != "temperature")


# ---------------------------------------------------------------- bad input


BAD = {
    "keys without a terminal": ({"human": "keyboard"}, "--human keyboard reads keys from a terminal"),
    "verdict of nobody": ({"reward": "human"}, "add --human keyboard"),
    "nobody to confirm": ({"confirm": True}, "add --human keyboard"),
    "no rate": ({"control_hz": 0}, "--control_hz is 0.0; wanted steps per second"),
    "no file": ({"demo_paths": "none.pkl"}, "none.pkl: file: got no such file"),
    "no camera": ({"image_keys": "side"}, "wanted the image key 'side'"),
    "other mode": ({"setup_mode": LEARNED}, f"--setup_mode {FIXED}"),
    "odd batch": ({"batch_size": 5}, "--batch_size is 5; wanted an even number"),
    "no batch": ({"batch_size": 0}, "--batch_size is 0; wanted 1 or more"),
    "cta": ({"cta_ratio": 0}, "--cta_ratio is 0; wanted 1 or more"),
    "cycles": ({"cycles_per_step": 0}, "--cycles_per_step is 0"),
    "capacity": ({"buffer_capacity": 0}, "--buffer_capacity is 0"),
    "clone steps": ({"clone_steps": 0}, "--clone_steps is 0"),
    "clone weight": ({"clone_weight": -1}, "--clone_weight is -1.0; wanted 0 or more"),
    "clone of nothing": ({"clone_weight": 5, "pretrain_steps": 0}, "--pretrain_steps 0 clones nothing; leave one of"),
    "pretrain": ({"pretrain_steps": -1}, "--pretrain_steps is -1"),
    "stop_at": ({"stop_at": 95}, "--stop_at is 95.0; wanted a success rate from 0 to 1"),
    "eval_every": ({"eval_every": 0}, "--eval_every is 0"),
    "human": ({"human": "scripted"}, "--human scripted needs an environment with a scripted_expert"),
    "no classifier": ({"reward": "classifier"}, "--reward classifier and --classifier_ckpt go together"),
    "reward": ({"classifier_ckpt": "best.pt"}, "--reward classifier and --classifier_ckpt go together"),
    "frames": ({"success_frames": 0}, "--success_frames is 0; wanted 1 or more"),
    "frames of what": ({"success_frames": 2}, "--success_frames and --success_state say when a classifier's verdict"),
    "condition": ({"reward": "classifier", "classifier_ckpt": "c.pt", "success_state": "2=1"}, "'2=1' is no condition"),
    "lost classifier": ({"reward": "classifier", "classifier_ckpt": "none.pt"}, "none.pt"),
    "lost agent": ({"init_ckpt": "none.pt"}, "none.pt"),
    "lost policy": ({"eval_ckpt": "none.pt"}, "none.pt"),
    "two things": ({"eval_ckpt": "none.pt", "resume": True}, "--eval_ckpt evaluates, --resume and --init_ckpt train"),
    "two agents": ({"eval_ckpt": "none.pt", "init_ckpt": "none.pt"}, "--eval_ckpt evaluates"),
    "two starts": ({"init_ckpt": "none.pt", "pretrain_steps": 5}, "--init_ckpt starts from an agent"),
    "seed": ({"seed": 10**20}, "--seed is 100000000000000000000; wanted 0 to 2^63 - 1"),
    "env": ({"env": "NoSuchTask-v0"}, "--env NoSuchTask-v0"),
    "wide": ({"env": "TinyWide-v0"}, "wanted -1 to 1"),
    "steps": ({"env": "TinySteps-v0"}, "wanted a gymnasium.spaces.Box of numbers (A,) from -1 to 1"),
    "mode of env": ({"env": "TinyDual-v0"}, "the environment is dual-arm-fixed-gripper, --setup_mode single-arm-fixed"),
    "broken env": ({"env": "TinyBroken-v0"}, "--env TinyBroken-v0 cannot be made: TypeError"),
    "package": ({"env": "no_such_package:Task-v0"}, "--env no_such_package:Task-v0"),
    "other env": ({"env": "built-in"}, "--env built-in does not fit the demos: observation 'image' is (128, 128, 3)"),
    "resume": ({"resume": True}, "no checkpoint to resume from"),
    "device": ({"device": "abacus"}, "device 'abacus' is not usable"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_2(name, demos, tmp_path, capsys):
    changes, message = BAD[name]
    refused(train_hybrid, capsys, message, words(demos, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_views_beside_a_trained_backbone_are_said_to_do_nothing(demos, tmp_path, capsys):
    for views, said in ((3, True), (None, False)):
        train_hybrid.parse_args(words(demos, tmp_path, views=views, train_backbone=True))
        assert ("--views 3 has no effect with --train_backbone" in capsys.readouterr().out) == said


def test_a_buffer_beyond_the_memory(demos, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train_hybrid.main(words(demos, tmp_path / "run", buffer_capacity=10**13))
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "a buffer of 5,000,000,000,048 transitions does not fit into memory" in last
    assert not (tmp_path / "run").exists()


def test_wrong_files_as_checkpoints(demos, tmp_path, capsys):
    torch.save({"weights": 1}, tmp_path / "other.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:100])
    (tmp_path / "code.pt").write_bytes(pickle.dumps(print))
    SACAgent(["image"], 6, device="cpu").save(tmp_path / "agent.pt")  # without the demos' state
    RewardClassifier(["side"], device="cpu").save(tmp_path / "classifier.pt")
    for option, file, message in (
        ("init_ckpt", "other.pt", "not an agent checkpoint"),
        ("init_ckpt", "half.pt", "half.pt"),
        ("init_ckpt", "code.pt", "code.pt"),
        ("init_ckpt", "agent.pt", "state_dim is 0, here 3"),
        ("eval_ckpt", "classifier.pt", "not an agent checkpoint"),
        ("classifier_ckpt", "agent.pt", "not a reward classifier"),
        ("classifier_ckpt", "classifier.pt", "looks at ['side'], the environment has ['image', 'state']"),
    ):
        more = {"reward": "classifier"} if option == "classifier_ckpt" else {}
        refused(train_hybrid, capsys, message, words(demos, tmp_path / "run", **{option: tmp_path / file}, **more))


def test_damaged_files_of_a_run_are_found_on_resume(demos, tmp_path, capsys):
    train_hybrid.main(words(demos, tmp_path, max_steps=1))
    part = next(tmp_path.glob("buffer_online_*.pt"))
    for file, damage, message in (
        ("best.pt", lambda f: f.write_bytes(f.read_bytes()[:1000]), "best.pt: not a readable checkpoint"),
        ("best.pt", lambda f: torch.save({"weights": 1}, f), "best.pt beside last.pt is not an agent's checkpoint"),
        (part.name, lambda f: torch.save({"weights": 1}, f), f"{part.name}: not a part of a buffer"),
        ("metrics.jsonl", lambda f: f.write_text("{]\n"), "metrics.jsonl: damaged"),
    ):
        whole = (tmp_path / file).read_bytes()
        damage(tmp_path / file)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            train_hybrid.main(words(demos, tmp_path, max_steps=1, resume=True))
        assert stop.value.code == 2 and message in capsys.readouterr().err
        (tmp_path / file).write_bytes(whole)


def test_runs_are_not_lost_and_not_mixed(demos, tmp_path, capsys):
    out = tmp_path / "run"
    train_hybrid.main(words(demos, out, max_steps=1, pretrain_steps=1, eval_every=50))
    capsys.readouterr()
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    refused(train_hybrid, capsys, "holds a run already", words(demos, out))
    for changes, message in (
        ({"lr": 1e-3, "pretrain_steps": 1}, "--lr was 0.0003, is 0.001; resume with the same ones"),
        ({"env": "TinyHuman-v0"}, "--env was Tiny-v0, is TinyHuman-v0; --pretrain_steps was 1, is 2"),
        ({"pretrain_steps": 1, "demo_paths": make_demos(tmp_path / "o.pkl", seed=1)}, "was trained on other demos"),
    ):
        refused(train_hybrid, capsys, message, words(demos, out, resume=True, **changes))
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_a_cluster_without_ray_is_refused_with_the_command(demos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pytorch_serl.scaling.ray_cluster", raising=False)
    monkeypatch.delattr("pytorch_serl.scaling.ray_cluster", raising=False)
    line = words(demos, tmp_path, learner=None, ray_address="auto")
    refused(train_hybrid, capsys, "needs Ray: python -m pip install -r requirements/ray.txt", line)

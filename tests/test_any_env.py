"""Environments that nobody here wrote: what they say of themselves, their experts, evaluations, their arguments."""

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import record_demos
import train_hybrid
import train_offline
from pytorch_serl.data.demos import read_demos
from pytorch_serl.envs.human.scripted import ScriptedHuman, check_expert
from pytorch_serl.training import arguments, build, run
from pytorch_serl.training.arguments import MAY_CHANGE
from pytorch_serl.training.evaluate import EVAL_SEED, FINAL_SEED, report_evaluation
from pytorch_serl.utils.files import load_checkpoint
from tests.expert_env import ExpertEnv, Simulated
from tests.runs import FIXED, command, content, make_demos, record, refused

pytestmark = pytest.mark.usefixtures("empty_home")
SIMULATED, EXPERT = "tests.expert_env:Simulated-v0", "tests.expert_env:Expert-v0"


@pytest.fixture(autouse=True)
def forget():
    ExpertEnv.made, ExpertEnv.resets = 0, []


def words(demos, out, **changes):
    options = {
        "demo_paths": demos,
        "image_keys": "image",
        "setup_mode": FIXED,
        "env": SIMULATED,
        "save_dir": out,
        "device": "cpu",
        "batch_size": 4,
        "views": 1,
        "pretrain_steps": 1,
        "training_starts": 100,
        "max_steps": 13,
        "eval_every": 100,
        "buffer_capacity": 100,
        "eval_episodes": 1,
    }
    return command(options | changes)


def settings(out):
    return json.loads((out / "settings.json").read_text())


# ---------------------------------------------------------------- what an environment says


@pytest.mark.parametrize(
    ("options", "simulated", "copies", "expert"),
    [
        ({"id": "tests.expert_env:Simulated-v0"}, True, 3, True),
        ({"id": "tests.expert_env:Factory-v0"}, True, 3, True),
        ({"id": "tests.expert_env:Simulated-v0", "simulated": False}, False, 1, True),  # the attribute prevails
        ({"id": "tests.expert_env:Expert-v0", "simulated": True}, True, 1, True),
        ({"id": "tests.expert_env:Expert-v0", "simulated": True, "eval_copies": 2}, True, 2, True),
        ({"id": "tests.expert_env:Expert-v0", "eval_copies": 2}, False, 1, True),
        ({"id": "tests.expert_env:Expert-v0", "expert": False}, False, 1, False),
        ({"id": "tests.tiny_env:Tiny-v0"}, False, 1, False),
    ],
)
def test_what_an_environment_says_of_itself(options, simulated, copies, expert):
    env = gym.make(**options)
    assert (build.is_simulated(env), build.eval_copies(env), build.has_expert(env)) == (simulated, copies, expert)


def test_a_registered_class_says_it_unmade():
    assert build.registered(SIMULATED) is Simulated and ExpertEnv.made == 0
    assert build.is_simulated(build.registered("built-in")) and build.eval_copies(build.registered("built-in")) == 10
    panda = build.registered("panda")
    assert build.is_simulated(panda) and build.eval_copies(panda) == 1 and build.has_expert(panda)
    for unknown in ("tests.expert_env:Factory-v0", "no_such_package:Task-v0", "NoSuchTask-v0"):
        assert build.registered(unknown) is None and not build.is_simulated(None) and not build.has_expert(None)


def test_every_registered_environment_has_a_short_name():
    ids = {f"pytorch_serl.envs:{name}" for name in gym.registry if name.startswith("pytorch_serl/")}
    assert set(build.ENV_NAMES.values()) == ids and len(build.ENV_NAMES) == len(ids) == 13
    assert {"built-in", "panda", "robosuite-lift", "robosuite-two-arm-peg-in-hole"} < build.ENV_NAMES.keys()
    assert build.env_id("metaworld-button-press-topdown").endswith(":pytorch_serl/MetaWorldButtonPressTopdown-v0")
    for name in build.ENV_NAMES:
        assert build.is_simulated(build.registered(name)) or build.registered(name) is None  # its package is not here


@pytest.mark.parametrize("name", ["robosuite-lif", "no_such_package:Task-v0", "tests.expert_env:Exprt-v0", "Task v0"])
@pytest.mark.parametrize("script", [train_hybrid, train_offline, record_demos])
def test_an_unknown_environment_is_told_what_there_is(script, name, demos, tmp_path, capsys):
    line = {"setup_mode": FIXED, "env": name}
    if script is record_demos:
        line |= {"output_dir": tmp_path}
    else:
        line |= {"demo_paths": demos, "image_keys": "image", "save_dir": tmp_path, "device": "cpu"}
    error = refused(script, capsys, f"--env {name} cannot be made", command(line))
    assert all(there in error for there in (*build.ENV_NAMES, "package:Id"))


def test_what_fails_in_a_known_environment_is_no_unknown_name():
    with pytest.raises(ValueError, match="cannot be made: TypeError") as error:
        build.make_env(EXPERT, FIXED, {"colour": "red"})
    assert "robosuite-lift" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, ("scripted", "inline", False, True)),
        ({"control_hz": 1000}, ("scripted", "process", False, True)),
        ({"human": "env"}, ("env", "inline", True, True)),
        ({"env_args": ["simulated=False"]}, ("env", "process", True, False)),
        ({"env": EXPERT}, ("env", "process", True, False)),
        ({"env": EXPERT, "human": "scripted"}, ("scripted", "process", False, False)),
        (
            {"env": "tests.expert_env:Expert-v0", "env_args": ["simulated=True", "expert=False"]},
            ("env", "inline", True, True),
        ),
    ],
)
def test_defaults_follow_from_the_environment(changes, chosen, demos, tmp_path):
    args = train_hybrid.parse_args(words(demos, tmp_path, **changes))
    env = train_hybrid.make_env(args, read_demos(demos, ["image"], FIXED))
    assert (args.human, args.learner, args.imitate_successes, args.simulated) == chosen
    assert ExpertEnv.made == 1  # a robot is there only once
    env.close()


@pytest.mark.parametrize("device, gpu", [("auto", True), ("cuda", True), ("cuda:1", True), ("cpu", False)])
def test_a_learner_on_a_cluster_gets_a_gpu_where_one_is_named(device, gpu, demos, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "pick_device", lambda name: torch.device("cpu" if name == "auto" else name))
    options = {"demo_paths": demos, "image_keys": "image", "setup_mode": FIXED, "save_dir": tmp_path, "device": device}
    assert train_hybrid.parse_args(command(options | {"ray_address": "auto"})).gpu_learner == gpu


@pytest.mark.parametrize("limit", [7, 70])
def test_an_episodes_limit_reaches_the_environment_that_has_one_of_its_own(limit):
    env = build.make_env("built-in", FIXED, {"max_episode_steps": limit})
    env.reset(seed=0)
    steps, over = 0, False
    while not over:
        *_, terminated, truncated, _ = env.step(np.zeros(6, np.float32))
        steps, over = steps + 1, terminated or truncated
    assert (steps, terminated, truncated) == (limit, False, True)
    assert "max_episode_steps" not in gym.spec(build.env_id("built-in").rpartition(":")[2]).kwargs
    env.close()


def test_a_human_without_an_expert_is_refused(demos, tmp_path, capsys):
    line = words(demos, tmp_path, env_args=["expert=False"], env="tests.expert_env:Expert-v0", human="scripted")
    refused(train_hybrid, capsys, "--human scripted needs an environment with a scripted_expert", line)


# ---------------------------------------------------------------- a whole run


def test_recorded_corrected_and_evaluated(tmp_path, capsys):
    """From demos by its expert to an evaluation, in an environment that no file here names."""
    demos = record(FIXED, tmp_path / "data", env=SIMULATED, num_demos=5, num_classifier_episodes=0)
    assert f"--env {SIMULATED}" in capsys.readouterr().out
    ExpertEnv.made = 0
    out = tmp_path / "run"
    train_hybrid.main(words(demos, out, patience=0.1, burst=[0.6, 0.6], human_noise=0, final_episodes=4))
    said = capsys.readouterr().out
    assert ExpertEnv.made == 3 and "begins where no demo begins" not in said
    chosen = settings(out)
    assert (chosen["human"], chosen["learner"], chosen["simulated"]) == ("scripted", "inline", True)
    corrections = load_checkpoint(next(out.glob("buffer_demo_*.pt")))["counters"][0]
    assert corrections >= 0 and content(out)["progress"]["recent"][0]
    evaluations = [options for seed, options in ExpertEnv.resets if seed >= EVAL_SEED]
    others = [options for seed, options in ExpertEnv.resets if seed < EVAL_SEED]
    assert evaluations and others and all(options == {"evaluation": True} for options in evaluations)
    assert not any((options or {}).get("evaluation") for options in others)
    final = json.loads((out / "evaluation.json").read_text())
    assert final["deterministic"]["episodes"] == final["sampled"]["episodes"] == 4

    capsys.readouterr(), ExpertEnv.resets.clear()
    train_offline.main(
        command(
            {"demo_paths": demos, "image_keys": "image", "setup_mode": FIXED, "save_dir": tmp_path / "off", "views": 1}
            | {"env": SIMULATED, "env_args": "offset=9.0", "max_steps": 1, "batch_size": 4, "device": "cpu"}
            | {"eval_episodes": 2, "final_episodes": 3}
        )
    )
    said = capsys.readouterr().out
    assert f"WARNING: --env {SIMULATED}: the environment begins where no demo begins: state[0] = 9.2" in said
    assert {seed for seed, options in ExpertEnv.resets if options} == {
        *(EVAL_SEED + n for n in range(2)),
        *(FINAL_SEED + n for n in range(3)),
    }


def test_the_human_of_the_options(demos, tmp_path):
    args = train_hybrid.parse_args(words(demos, tmp_path, patience=0.2, burst=[0.3, 0.3], human_noise=0))
    human = build.add_human(gym.make(SIMULATED), "scripted", 0, **train_hybrid.scripted_settings(args))
    human.reset(seed=1)
    helped = ["intervene_action" in human.step(np.zeros(6, np.float32))[4] for _ in range(7)]
    assert helped == [False, False, True, True, True, False, False]
    human.reset(seed=1, options={"evaluation": True})
    assert not any("intervene_action" in human.step(np.zeros(6, np.float32))[4] for _ in range(12))


@pytest.mark.parametrize(
    ("fps", "control_hz", "rate"),
    [(40, None, 40), (12.5, None, 12.5), (None, None, 10), (None, 20, 20), (40, 20, 40), (0, None, 10), ("a", 5, 5)],
)
def test_the_humans_times_are_seconds_of_the_environment(fps, control_hz, rate, demos, tmp_path):
    """Its own rate says what a step is; where it says nothing, the rate that it is kept at."""
    env = build.make_env(SIMULATED, FIXED, {"fps": fps})
    env.control_hz = control_hz
    assert build.steps_per_second(env, control_hz) == rate
    human = build.add_human(env, "scripted", 0)
    assert human.patience == round(0.4 * rate) and human.burst == (round(0.8 * rate), round(1.2 * rate))
    short = build.add_human(env, "scripted", 0, patience=0.001, burst=(0.001, 0.1))
    assert short.patience == 1 and short.burst == (1, max(1, round(0.1 * rate)))


def test_an_expert_is_seeded_by_its_protocol():
    def actions(seed):
        human = ScriptedHuman(gym.make(SIMULATED), patience=0, noise=0.5)
        human.reset(seed=seed)
        return [human.step(np.zeros(6, np.float32))[4]["intervene_action"] for _ in range(3)]

    assert np.array_equal(actions(1), actions(1)) and not np.array_equal(actions(1), actions(2))


BAD = {
    "word": ({"env_args": ["offset"]}, "--env_args: got 'offset', wanted KEY=VALUE"),
    "argument": ({"env_args": ["colour=red"]}, "cannot be made: TypeError"),
    "patience": ({"patience": 0}, "--patience is 0.0; wanted seconds, more than 0"),
    "no patience": ({"patience": "nan"}, "--patience is nan; wanted seconds"),
    "burst": ({"burst": [0.5, 0.3]}, "--burst is [0.5, 0.3]; wanted two times in seconds"),
    "endless burst": ({"burst": [1, "inf"]}, "--burst is [1.0, inf]; wanted two times in seconds"),
    "noise": ({"human_noise": -1}, "--human_noise is -1.0; wanted 0 or more"),
    "final": ({"final_episodes": 0}, "--final_episodes is 0; wanted 1 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_are_one_line(name, demos, tmp_path, capsys):
    changes, message = BAD[name]
    refused(train_hybrid, capsys, message, words(demos, tmp_path / "run", **changes))


def test_options_of_an_environment_need_one(demos, tmp_path, capsys):
    offline = {"demo_paths": demos, "image_keys": "image", "setup_mode": FIXED, "save_dir": tmp_path / "run"}
    for option, value in (("final_episodes", 3), ("env_args", "a=1")):
        line = command(offline | {option: value})
        refused(train_offline, capsys, f"--{option} needs an environment; give --env as well", line)


@pytest.mark.parametrize("sampled", [True, False, None])
def test_the_sampled_pass_is_on_request(sampled, demos, tmp_path, capsys):
    option = [] if sampled is None else ["--sampled" if sampled else "--no-sampled"]
    passes = {"deterministic"} | ({"sampled"} if sampled is not False else set())
    train_hybrid.main([*words(demos, tmp_path, max_steps=1), *option])
    assert json.loads((tmp_path / "evaluation.json").read_text()).keys() == passes
    evaluated = words(demos, tmp_path / "again", eval_ckpt=tmp_path / "best.pt")
    train_hybrid.main([*evaluated, *option])
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text()).keys() == passes
    offline = {"demo_paths": demos, "image_keys": "image", "setup_mode": FIXED, "save_dir": tmp_path / "off"}
    offline |= {"views": 1, "env": SIMULATED, "max_steps": 1, "batch_size": 4, "device": "cpu", "eval_episodes": 1}
    train_offline.main([*command(offline), *option])
    assert json.loads((tmp_path / "off" / "evaluation.json").read_text()).keys() == passes
    assert FINAL_SEED in {seed for seed, _ in ExpertEnv.resets}
    if sampled is False:
        capsys.readouterr()
        line = [*command(offline | {"env": None, "eval_episodes": None}), "--overwrite", *option]
        refused(train_offline, capsys, "--no-sampled needs an environment; give --env as well", line)


@pytest.mark.parametrize("script", [train_hybrid, train_offline])
def test_minutes_are_those_on_the_wall_since_the_first_start(script, demos, tmp_path, monkeypatch, capsys):
    """Encoding, pretraining and evaluations are in them, resumptions are added; everywhere the same."""
    now = [5000.0]

    def takes(minutes, place, name):
        real = getattr(place, name)

        def slow(*args, **options):
            now[0] += 60 * minutes
            return real(*args, **options)

        monkeypatch.setattr(place, name, slow)

    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now[0]))
    takes(100, build, "add_demos")
    takes(1000, build, "make_agent")
    takes(10, script, "evaluate_to_stop")
    takes(100_000, script, "report_evaluation")
    line = words(demos, tmp_path, max_steps=2, eval_every=1)
    if script is train_offline:
        drop = {"--pretrain_steps", "--training_starts", "--buffer_capacity"}
        line = [w for i, w in enumerate(line) if w not in drop and line[i - 1] not in drop]
    script.main(line)
    said = capsys.readouterr().out
    rows = [row["minutes"] for row in map(json.loads, open(tmp_path / "metrics.jsonl")) if "minutes" in row]
    first = 1000 + 100 + 10  # made, encoded, evaluated
    assert rows == [first + 10 * i for i in range(len(rows))] and len(rows) >= 2, rows
    assert f"; {rows[0]:.1f} min" in said and f", {rows[-1]:.1f} minutes" in said
    assert content(tmp_path)["progress"]["minutes"] == rows[-1]

    now[0] += 1e6  # nobody was training
    line[line.index("--max_steps") + 1] = "3"
    script.main([*line, "--resume"])
    again = [row["minutes"] for row in map(json.loads, open(tmp_path / "metrics.jsonl")) if "minutes" in row]
    assert again == [*rows, rows[-1] + 1000 + 10]
    assert f", {again[-1]:.1f} minutes" in capsys.readouterr().out


# ---------------------------------------------------------------- the expert alone


def test_an_expert_that_would_be_interrupted_is_told():
    good = check_expert(gym.make(SIMULATED), episodes=3)
    assert good.steps_to_success == [4, 4, 4] and not good.interruptions
    assert "solved 3 of 3 episodes in 4.0 steps; the scripted human would not have interrupted him" in str(good)
    bad = check_expert(gym.make("tests.expert_env:Stalling-v0"), episodes=3, seed=7)
    assert bad.interruptions == {7: [4], 8: [4], 9: [4]} and bad.longest_stall == 8
    assert "WARNING" in str(bad) and "interrupted him 3 times, in 3 episodes (first: seed 7, step 4)" in str(bad)
    assert "--patience 0.9 (seconds)" in str(bad)
    fast = check_expert(gym.make("tests.expert_env:Stalling-v0"), 3, seed=7, rate=40)
    assert "--patience 0.225 (seconds)" in str(fast)
    assert not check_expert(gym.make("tests.expert_env:Stalling-v0"), 3, patience=9).interruptions


@pytest.mark.parametrize(("env", "said"), [(SIMULATED, True), ("tests.expert_env:Expert-v0", False)])
def test_check_lets_a_simulated_expert_act(env, said, tmp_path, capsys):
    """No robot moves by script unless that is asked for."""
    line = {"env": env, "setup_mode": FIXED, "output_dir": tmp_path, "check": True}
    record_demos.main(command(line))
    assert ("the expert alone solved 10 of 10 episodes" in capsys.readouterr().out) == said
    record_demos.main(command(line | {"human": "scripted"}))
    assert "the expert alone solved 10 of 10 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fps", "patience", "stalls"), [(10, 0.4, True), (40, 0.1, True), (40, 0.4, False), (10, 0.9, False)]
)
def test_a_check_is_as_patient_as_the_human_at_the_rate(fps, patience, stalls, tmp_path, capsys):
    line = {"env": "tests.expert_env:Stalling-v0", "setup_mode": FIXED, "output_dir": tmp_path, "check": True}
    record_demos.main(command(line | {"env_args": [f"fps={fps}"], "patience": patience}))
    said = capsys.readouterr().out
    assert ("would have interrupted him" in said) == stalls, said
    assert (f"--patience {9 / fps:.3g}" in said) == stalls


# ---------------------------------------------------------------- resume, and an evaluation cut off


def test_a_checkpoint_of_before_these_options_goes_on(demos, tmp_path, capsys):
    train_hybrid.main(words(demos, tmp_path, max_steps=1))
    saved = content(tmp_path)
    for name in ("patience", "burst", "human_noise", "env_args"):
        del saved["identity"]["settings"][name]
    torch.save(saved, tmp_path / "last.pt")
    train_hybrid.main(words(demos, tmp_path, max_steps=2, resume=True))
    assert content(tmp_path)["step"] == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train_hybrid.main(words(demos, tmp_path, max_steps=3, resume=True, patience=0.9))
    assert "--patience was 4, is 9 (steps" in capsys.readouterr().err


def test_a_checkpoint_with_the_scripted_humans_times_in_steps_goes_on(demos, tmp_path, capsys):
    """Earlier versions had them so, whatever the rate: at 40 Hz, the same steps are other seconds."""
    fast = {"env_args": ["fps=40"]}
    train_hybrid.main(words(demos, tmp_path, max_steps=1, **fast))
    assert "after 0.4 s (16 steps of this environment) without progress, for 0.8 to 1.2 s (32 to 48" in (
        capsys.readouterr().out
    )
    saved = content(tmp_path)
    assert (saved["identity"]["settings"]["patience"], saved["identity"]["settings"]["burst"]) == (16, [32, 48])
    assert settings(tmp_path)["patience"] == 0.4 and settings(tmp_path)["steps_per_second"] == 40
    saved["identity"]["settings"] |= {"patience": 4, "burst": [8, 12]}
    torch.save(saved, tmp_path / "last.pt")
    with pytest.raises(SystemExit):
        train_hybrid.main(words(demos, tmp_path, max_steps=2, resume=True, **fast))
    assert "--burst was [8, 12], is [32, 48] (steps" in capsys.readouterr().err
    same = {"patience": 0.1, "burst": [0.2, 0.3]}
    train_hybrid.main(words(demos, tmp_path, max_steps=2, resume=True, **fast, **same))
    train_hybrid.main(words(demos, tmp_path / "alone", max_steps=1, human="env", **fast))
    saved = content(tmp_path / "alone")
    saved["identity"]["settings"] |= {"patience": 4, "burst": [8, 12]}
    torch.save(saved, tmp_path / "alone" / "last.pt")  # where he never acted, it does not matter
    train_hybrid.main(words(demos, tmp_path / "alone", max_steps=2, resume=True, human="env", **fast))


def test_what_is_fixed_follows_from_the_options(demos, tmp_path):
    """All of an earlier version's are among them, and no name in MAY_CHANGE is of no option."""
    before = (
        "image_keys setup_mode env human reward success_frames success_state batch_size lr discount cta_ratio "
        "cycles_per_step pretrain_steps clone_steps clone_weight training_starts random_steps imitate_successes "
        "buffer_capacity views train_backbone seed"
    ).split()
    args = train_hybrid.parse_args(words(demos, tmp_path))
    fixed = train_hybrid.fixed_settings(args)
    assert set(fixed) == {*before, "env_args", "patience", "burst", "human_noise", "algo", "clone_std"}
    assert set(MAY_CHANGE) <= {*vars(args), "simulated"}
    offline = train_offline.parse_args(["--demo_paths", "x", "--image_keys", "image", "--setup_mode", FIXED])
    before = "algo image_keys setup_mode env batch_size lr discount views train_backbone val_fraction seed".split()
    assert set(train_offline.fixed_settings(offline, ("patience",))) == {*before, "env_args"}


class Ending(gym.Wrapper):
    """Its n-th evaluation episode is cut off."""

    count = 0

    def reset(self, **options):
        self.count += 1
        if self.count == 4:
            raise self.how("cut off")
        return super().reset(**options)


class Pusher:
    num_grippers, image_keys = 0, ["image"]

    def sample_actions(self, obs, argmax):
        return np.full(6, 0.9, np.float32)


@pytest.mark.parametrize("how", [KeyboardInterrupt, ConnectionError])
def test_an_evaluation_that_is_cut_off_leaves_what_it_has(how, tmp_path):
    env = Ending(gym.make(SIMULATED))
    env.how = how
    with pytest.raises(how):
        report_evaluation(Pusher(), env, 10, tmp_path)
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures.keys() == {"deterministic"}
    assert (figures["deterministic"]["episodes"], figures["deterministic"]["successes"]) == (3, 3)
    assert figures["deterministic"]["wanted_episodes"] == 10 and (tmp_path / "evaluation.gif").exists()
    with pytest.raises(how):  # the second pass: of the first, all is there
        env.count = 1
        report_evaluation(Pusher(), env, 2, tmp_path)
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["deterministic"]["episodes"] == 2 and "wanted_episodes" not in figures["deterministic"]


def test_of_episodes_side_by_side_only_whole_groups_count(tmp_path):
    """Else those that are over first, the solved ones, would count more."""
    envs = [Ending(gym.make(SIMULATED)) for _ in range(2)]
    envs[1].how = KeyboardInterrupt
    envs[0].count = -100
    with pytest.raises(KeyboardInterrupt):
        report_evaluation(Pusher(), envs, 10, tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["deterministic"]["episodes"] == 6


def test_demos_of_another_start_say_nothing_when_few(tmp_path):
    from pytorch_serl.data.oddities import start_bounds, start_oddity

    few = read_demos(make_demos(tmp_path / "few.pkl", episodes=4), ["image"], FIXED)
    assert start_bounds(few) is None
    demos = read_demos(make_demos(tmp_path / "demos.pkl", episodes=8), ["image"], FIXED)
    bounds = start_bounds(demos)
    first = [t["observations"]["state"] for t in demos.transitions[::4]]
    assert all(start_oddity(bounds, state) is None for state in first)
    text = start_oddity(bounds, first[0] + np.array([0, 30, 0], np.float32))
    assert "state[1] = " in text and "state[0]" not in text and "state[2]" not in text

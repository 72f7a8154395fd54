"""The learner in a process of its own: same buffers, parameters that arrive whole, crashes that are said; the pace."""

import fcntl
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import train_hybrid
from pytorch_serl.data.episode_files import episode_files, read_episode
from pytorch_serl.scaling.parameters import SharedParameters, acting_modules
from pytorch_serl.scaling.processes import LearnerError, RemoteLearner
from pytorch_serl.training.pace import Pace
from pytorch_serl.utils.files import RunInUse, load_checkpoint, wait_for_lock
from tests.runs import ROOT, RUN_OUTPUTS, command, content, equal, metrics, refused
from tests.test_hybrid import training
from tests.tiny_env import LENGTH


@pytest.fixture(autouse=True)
def one_thread(empty_home, monkeypatch):
    """The same sums here and in the learner's process, which finds the tests' environment."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def words(demos, out, **changes):
    options = {
        "demo_paths": demos,
        "image_keys": "image",
        "setup_mode": "single-arm-fixed-gripper",
        "save_dir": out,
        "env": "tests.tiny_env:TinyHuman-v0",
        "device": "cpu",
        "batch_size": 4,
        "views": 2,
        "pretrain_steps": 2,
        "training_starts": 4,
        "max_steps": 3 * LENGTH,
        "eval_every": 2 * LENGTH,
        "eval_episodes": 1,
        "stop_at": 1.0,
        "buffer_capacity": 100,
    }
    return command(options | changes)


def test_a_run_and_its_resumption(demos, tmp_path):
    """One command line: files, buffers, what was evaluated is what is kept, and --resume goes on."""
    out = tmp_path / "run"
    train_hybrid.main(words(demos, out))
    assert {file.name for file in out.iterdir()} >= RUN_OUTPUTS | {"evaluation.gif", "evaluation.json", "episodes"}
    saved, best = content(out), load_checkpoint(out / "best.pt")
    recorded = [step for path in episode_files(out).values() for step in read_episode(path)]
    assert saved["step"] == len(recorded) == 3 * LENGTH and saved["progress"]["pretrained"] == 2
    assert set(metrics(out, "eval_success")) == {0, 2 * LENGTH, 3 * LENGTH}
    assert best["kind"] == "SACAgent" and not equal(best["modules"]["actor"], saved["agent"]["modules"]["actor"])
    train_hybrid.main(words(demos, out, max_steps=5 * LENGTH, resume=True))
    assert content(out)["step"] == 5 * LENGTH and content(out)["progress"]["episode"] == 5
    assert len(episode_files(out)) == 5


@pytest.mark.parametrize("learner", ["inline", "process"])
def test_a_resumed_run_acts_and_sees_as_before(learner, demos, tmp_path, monkeypatch):
    """By its own backbone, too: a random one gives actions, and features to store, that look like right ones."""
    out, frame = tmp_path / "run", {"image": np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)}
    train_hybrid.main(words(demos, out, learner=learner))
    frame["state"] = np.zeros(load_checkpoint(out / "best.pt")["config"]["state_dim"], np.float32)
    actions = []

    def act(agent):
        actions.append(agent.sample_actions(frame, argmax=True, averaged=True))

    act(train_hybrid.build.load_agent(out / "last.pt"))
    monkeypatch.setattr(train_hybrid.HybridTraining, "run", lambda run, step, log: act(run.agent) or step)
    train_hybrid.main(words(demos, out, learner=learner, resume=True))
    np.testing.assert_allclose(*actions, atol=1e-5)


def test_a_run_begun_from_an_agent_resumes_as_itself(demos, tmp_path, monkeypatch):
    """Whatever became of that agent's file since, with another backbone in it, too, and without naming it again."""
    out, init, seen = tmp_path / "run", tmp_path / "init.pt", []
    first, other = (remote(demos, out, learner="inline")[0].agent for _ in range(2))  # each with a random backbone

    def run(training, step, log):
        seen.append(equal(training.agent.backbone.state_dict(), first.backbone.state_dict()))
        training.save(step)
        training.learner.close()
        raise SystemExit

    def start(**changes):
        with pytest.raises(SystemExit):
            train_hybrid.main(words(demos, out, pretrain_steps=None, **changes))

    monkeypatch.setattr(train_hybrid.HybridTraining, "run", run)
    first.save(init)
    start(init_ckpt=init, learner="inline")
    other.save(init)
    start(init_ckpt=init, learner="process", resume=True)
    init.unlink()
    start(learner="inline", resume=True)
    assert seen == [True, True, True]


def test_the_buffers_are_those_of_a_learner_inline(demos, tmp_path):
    """What crosses the processes arrives: same transitions, corrections, pretraining; from it the same first update."""
    for learner in ("inline", "process"):
        changes = {"learner": learner, "random_steps": 100, "training_starts": 100, "max_steps": 2 * LENGTH}
        train_hybrid.main(words(demos, tmp_path / learner, **changes))
    a, b = (content(tmp_path / learner) for learner in ("inline", "process"))
    assert a["sampling"] == b["sampling"] and equal(a["agent"], b["agent"])
    for part, other in zip(a["parts"], b["parts"], strict=True):
        pair = [load_checkpoint(tmp_path / name / p["file"]) for name, p in (("inline", part), ("process", other))]
        assert part == other and equal(*pair)


def remote(demos, out, **changes):
    args = train_hybrid.parse_args(words(demos, out, **changes))
    read = train_hybrid.read_demos(args.demo_paths, args.image_keys, args.setup_mode)
    agent = train_hybrid.build.make_agent(
        read, lr=1e-3, discount=0.9, device=args.device, backbone=None, trainable=False
    )
    return train_hybrid.HybridTraining(args, agent, read, out, train_hybrid.make_env(args, read)), read


def test_the_actor_gets_what_was_learned(demos, tmp_path):
    run, read = remote(demos, tmp_path)
    assert isinstance(run.learner, RemoteLearner)
    before = [p.clone() for m in acting_modules(run.agent) for p in m.parameters()]
    run.learner.store_demos(read)
    info = run.learner.pretrain()
    assert 0 < info["clone_loss"] and run.learner.pretrained == 1
    policy = run.learner.averaged()  # from here on it acts, however late the first update beside the robot is
    path = run.learner.save(0, {"evaluated": -1})
    run.learner.pretrain()  # what is kept is what was evaluated
    run.learner.save_averaged(tmp_path / "best.pt")
    saved, kept = content(tmp_path)["agent"]["modules"], load_checkpoint(tmp_path / "best.pt")["modules"]
    run.learner.close()
    assert path == tmp_path / "last.pt" and not run.learner.process.is_alive()
    after = [p for m in acting_modules(run.agent) for p in m.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after))
    assert equal(run.agent.average_actor.state_dict(), saved["average_actor"])
    assert equal(
        run.agent.target["encoder"].state_dict(),
        {k.removeprefix("encoder."): v for k, v in saved["target"].items() if k.startswith("encoder.")},
    )
    assert not equal(saved["actor"], saved["average_actor"])
    assert equal(policy.actor.state_dict(), kept["actor"]) and equal(kept["actor"], saved["average_actor"])
    assert not list(tmp_path.glob("*.tmp"))
    assert equal(kept["backbone"], run.agent.backbone.state_dict())


def test_exploration_goes_on_after_a_resumption(demos, tmp_path):
    """Random numbers of the process that acts are its own, beside the learner's."""
    run, read = remote(demos, tmp_path)
    run.learner.store_demos(read)
    torch.manual_seed(5), np.random.seed(5)
    run.save(0)
    wanted = torch.rand(3).tolist(), np.random.rand()
    run.learner.close()
    run, _ = remote(demos, tmp_path, resume=True)
    run.load()
    run.learner.close()
    assert (torch.rand(3).tolist(), np.random.rand()) == wanted


def test_a_simulation_waits_for_its_learner(demos, tmp_path):
    run, read = remote(demos, tmp_path, learner="process")
    assert not run.waits  # a robot does not
    run.learner.store_demos(read)
    run.actor.start_episode()
    while not run.act(0):
        pass
    for _ in range(100):
        run.learner.learn(4)
    run.learner.catch_up(20)
    run.learner.save(0, {"evaluated": -1})
    run.learner.close()
    done = content(tmp_path)["agent"]["optimizers"]["actor"]["state"][0]["step"]
    assert 80 <= done <= 100


def test_a_failure_of_the_learner_is_said_with_its_traceback(demos, tmp_path):
    run, read = remote(demos, tmp_path)
    run.learner.store_demos(read)
    run.learner.add({"observations": {}})  # what no actor sends
    with pytest.raises(LearnerError, match=r"(?s)the learner failed:.*Traceback.*wanted"):
        run.learner.save(0, {"evaluated": -1})
    run.learner.close()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["learner", "actor"])
def test_killed_on_either_side_nothing_is_lost(victim, demos, tmp_path):
    out = tmp_path / "run"
    changes = {"max_steps": 10_000, "eval_every": 4 * LENGTH, "control_hz": 20}

    def start(**more):
        script = [sys.executable, ROOT / "train_hybrid.py", *words(demos, out, **changes | more)]
        return subprocess.Popen(script, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    process = start()
    wait(lambda: len(episode_files(out)) >= 6 or process.poll() is not None)
    (child,) = children(process.pid)
    os.kill(child if victim == "learner" else process.pid, signal.SIGKILL)
    text = process.communicate(timeout=300)[0]
    if victim == "learner":
        assert process.returncode == 1 and "LearnerError: the learner's process ended with exit code -9" in text
    wait(lambda: not running(child))
    recorded = sum(len(read_episode(path)) for path in episode_files(out).values())
    process = start(resume=True)
    wait(lambda: len(episode_files(out)) >= 8 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=300)[0]
    saved = content(out)
    assert process.returncode == 130 and f"environment step {saved['step']:,} is saved in" in text, text[-3000:]
    total = sum(len(read_episode(path)) for path in episode_files(out).values())
    assert recorded < total == saved["step"]


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["inline", "process"])
def test_killed_at_20_random_moments_it_resumes_every_time(learner, demos, tmp_path):
    """What was recorded is learned from, and the policy is the last saved one."""
    out, rng, unfinished = tmp_path / "out", np.random.default_rng(0), 0
    changes = {"max_steps": 100_000, "env": "tests.tiny_env:TinyHuman-v0", "buffer_capacity": 50_000}
    for kill in range(20):
        line = words(demos, out, **changes, learner=learner, resume=True if kill else None)
        kill_amid(line, out, rng.uniform(0, 1), saving=kill % 3 == 2, child=kill % 2, log=tmp_path / f"log{kill}")
        unfinished += len(list(out.glob(".last.pt.*.tmp")))
        recorded = sum(len(read_episode(path)) for path in episode_files(out).values())
        run = training(demos, out, **changes)
        assert run.load() == recorded == len(run.learner.online) > 0
        saved = training(demos, tmp_path / "other").agent
        saved.load(out / "last.pt")
        assert equal(run.agent.state_dict()["modules"], saved.state_dict()["modules"])
        obs = {"image": np.full((32, 32, 3), kill, np.uint8), "state": np.zeros(3, np.float32)}
        assert np.array_equal(saved.sample_actions(obs, argmax=True), run.agent.sample_actions(obs, argmax=True))
    assert unfinished  # it was hit while it saved


def kill_amid(line, out, seconds, saving, child, log):
    """SIGKILL for the script or its learner, some time after its third episode, or then at the next checkpoint."""
    last = max(episode_files(out), default=-1)
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, ROOT / "train_hybrid.py", *line], cwd=log.parent, stdout=file, stderr=subprocess.STDOUT
        )
    wait(lambda: max(episode_files(out), default=-1) >= last + 3 or process.poll() is not None)
    time.sleep(seconds)
    if saving:
        wait(lambda: list(out.glob(".last.pt.*.tmp")) or process.poll() is not None, pause=0.0005)
    pids = [process.pid, *children(process.pid)]
    os.kill(pids[-1] if child else pids[0], signal.SIGKILL)
    assert process.wait(timeout=300) in (-signal.SIGKILL, 1), log.read_text()[-2000:]
    wait(lambda: not any(running(pid) for pid in pids))


def wait(condition, seconds=400, pause=0.05):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


def children(pid):
    listed = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True, text=True).stdout
    return [int(line) for line in listed.split()]


def running(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state != "" and not state.startswith("Z")


def test_a_checkpoint_that_does_not_fit_is_refused(demos, tmp_path, capsys):
    out = tmp_path / "run"
    train_hybrid.main(words(demos, out, max_steps=1, learner="inline"))
    capsys.readouterr()
    before = (out / "last.pt").read_bytes()
    refused(train_hybrid, capsys, "--views was 2, is 3", words(demos, out, resume=True, views=3))
    assert before == (out / "last.pt").read_bytes()


def test_a_run_in_use_is_refused_and_one_that_ends_is_waited_for(tmp_path, monkeypatch):
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        wait_for_lock(first, 0.3)
        with pytest.raises(RunInUse, match="is in use by another run"):
            wait_for_lock(second, 0.3)
        monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(first, fcntl.LOCK_UN))
        wait_for_lock(second, 0.3)


# ---------------------------------------------------------------- parameters through shared memory


def test_a_broken_connection_leaves_the_resource_tracker():
    code = (
        "import os, signal, time; from multiprocessing import get_context, resource_tracker as t; "
        "from pytorch_serl.scaling.processes import start_deaf; "
        "start_deaf(get_context('spawn').Process(target=print)); "
        "pid = t._resource_tracker._pid; os.kill(pid, signal.SIGHUP); time.sleep(0.5); "
        "assert os.waitpid(pid, os.WNOHANG) == (0, 0); "
        "assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_parameters_arrive_whole_while_they_are_being_written():
    module, seen = nn.Linear(300, 300), set()
    shared = SharedParameters(sum(p.numel() for p in module.parameters()), mp.get_context("spawn"))
    writer, stop = nn.Linear(300, 300), threading.Event()

    def write():
        value = 0.0
        while not stop.is_set():
            value += 1.0
            for parameter in writer.parameters():
                parameter.data.fill_(value)
            shared.write([writer])

    thread = threading.Thread(target=write)
    thread.start()
    known = 0
    for _ in range(300):
        known = shared.read([module], known)
        values = torch.cat([p.detach().flatten() for p in module.parameters()]).unique()
        assert known == 0 or values.tolist() == [float(known)]
        seen.add(known)
    stop.set()
    thread.join()
    assert len(seen) > 5


# ---------------------------------------------------------------- the pace


def test_steps_are_a_period_apart_and_late_ones_are_counted():
    pace, starts = Pace(control_hz=50), []
    for thinking in [0.002] * 8 + [0.04] + [0.002] * 3:
        pace.observed()
        time.sleep(thinking)
        pace.keep()
        starts.append(time.monotonic())
    steps = np.diff(starts)
    assert (steps > 0.01).all() and np.median(steps) < 0.024 and steps[7] > 0.035
    figures = pace.figures()
    assert figures["overruns"] == pytest.approx(1 / 11) and 2 <= figures["action_ms_p50"] < 10
    assert figures["action_ms_p99"] > 30 and 19.5 <= figures["step_ms_p50"] < 24
    pace.restart()
    pace.observed(), time.sleep(0.1), pace.keep()  # an episode's first step is late for nothing
    assert pace.figures()["overruns"] == pytest.approx(1 / 11)


def test_without_a_rate_it_only_measures():
    pace = Pace()
    for _ in range(3):
        pace.observed()
        pace.keep()
    assert pace.figures()["step_ms_p99"] < 20 and "overruns" not in pace.figures()

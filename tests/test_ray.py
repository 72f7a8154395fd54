"""Robots and learner on a Ray cluster of two local nodes: the same buffers and files, and what kills leave."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

import train_hybrid
from pytorch_serl.data.episode_files import episode_files, read_episode
from pytorch_serl.training import build
from pytorch_serl.training.learner import Schedule
from pytorch_serl.training.limits import limits_for
from pytorch_serl.training.rewards import ContractError
from pytorch_serl.utils.files import load_checkpoint
from tests.runs import FIXED, ROOT, RUN_OUTPUTS, command, content, equal, metrics, refused
from tests.test_hybrid import training
from tests.tiny_env import HUMAN_STEPS, LENGTH, TinyEnv, fingerprint

ray = pytest.importorskip("ray", reason="pip install -r requirements/ray.txt")

from pytorch_serl.scaling import ray_cluster, ray_robots  # noqa: E402
from pytorch_serl.scaling.parameters import acting_modules, pack  # noqa: E402
from pytorch_serl.scaling.ray_cluster import LearnerHost, RayLearner  # noqa: E402
from pytorch_serl.scaling.ray_robots import Robots, RobotWorker  # noqa: E402

pytestmark = pytest.mark.usefixtures("empty_home")


def words(demos, out, **changes):
    options = {
        "demo_paths": demos,
        "image_keys": "image",
        "setup_mode": FIXED,
        "save_dir": out,
        "device": "cpu",
        "env": "tests.tiny_env:TinyWatched-v0",
        "batch_size": 4,
        "views": 2,
        "pretrain_steps": 2,
        "training_starts": 4,
        "max_steps": 10 * LENGTH,
        "eval_every": 5 * LENGTH,
        "eval_episodes": 1,
        "stop_at": 1.0,
        "buffer_capacity": 50_000,
        "ray_address": "auto",
        "actors": 2,
    }
    return command(options | changes)


# ---------------------------------------------------------------- without a cluster


def test_what_does_not_go_together_is_refused(demos, tmp_path, capsys):
    for message, changes in {
        "add --ray_address": {"ray_address": None},
        "--actors is 0": {"actors": 0},
        "sits at this terminal": {"human": "keyboard"},
        "learns between two steps": {"learner": "inline"},
        "--eval_ckpt evaluates on this machine": {"eval_ckpt": "x.pt"},
        "run the command on a machine of the cluster": {"ray_address": "ray://here:10001"},
    }.items():
        refused(train_hybrid, capsys, message, words(demos, tmp_path / "out", **changes))


@pytest.fixture
def robot(demos, tmp_path, monkeypatch):
    """Makes workers of one machine, without Ray; `gone` is what a kill does to one."""
    (tmp_path / "watched").mkdir()
    monkeypatch.setenv("TINY_WATCHED", str(tmp_path / "watched"))
    read = train_hybrid.read_demos(demos, ["image"], FIXED)
    agent = build.make_agent(read, lr=1e-3, discount=0.9, device=torch.device("cpu"), backbone=None, trainable=False)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    settings = {"seed": 0, "random_steps": 0, "sparse": True, "control_hz": None}

    def make(number=0):
        worker = RobotWorker()
        arguments = (lambda: TinyEnv(human=True), lambda env, seed: env, number, tmp_path / "spool", 1, settings)
        worker.left = worker.set_up((tmp_path / "agent.pt").read_bytes(), *arguments)[2]
        worker.values = pack(acting_modules(agent)).numpy()
        return worker

    make.agent = agent
    yield make


def gone(worker):
    for file in getattr(worker, "locks", []):  # none where it could not be set up
        file.close()


def test_an_episode_of_a_robot_is_what_an_actor_makes(robot, tmp_path):
    worker = robot(number=3)
    assert worker.left == []
    episode = worker.run_episode(worker.values, 4, 0, {"parameters_step": 100, "parameters_age": 7})
    assert [helped for _, helped in episode.steps] == [step in HUMAN_STEPS for step in range(1, LENGTH + 1)]
    assert episode.steps[-1][0]["dones"] and episode.solved and episode.summary[:3] == [1.0, 2, LENGTH]
    (tmp_path / "copy.pkl.gz").write_bytes(episode.files["episodes/000004.pkl.gz"])
    recorded = read_episode(tmp_path / "copy.pkl.gz")
    assert {(r["robot"], r["parameters_step"], r["parameters_age"]) for r in recorded} == {(3, 100, 7)}
    again = build.stored_transitions(robot.agent, recorded, views=1)
    for (transition, _), other in zip(episode.steps, again, strict=True):
        assert np.array_equal(transition["actions"], other["actions"]) and transition["dones"] == other["dones"]
        assert np.array_equal(transition["next_observations"]["image"], other["next_observations"]["image"])


def test_a_robots_machine_keeps_what_the_driver_does_not_have(robot, tmp_path):
    first, other, marks = robot(), robot(), {"parameters_step": 0, "parameters_age": 0}
    handed_over = first.run_episode(first.values, 0, 0, marks)
    finished = first.run_episode(first.values, 2, 0, marks)  # with this call the driver has the one before
    first.writer.start(4, first.env.reset(seed=4)[0])
    first.actor.start_episode()
    first.actor.act(0), first.actor.act(1)  # the third is cut off
    gone(first)
    kept = robot()
    assert [len(episode.steps) for episode in kept.left] == [LENGTH, 2] and not robot().left
    assert set(kept.left[0].files.values()) == {finished.files["episodes/000002.pkl.gz"]}
    assert kept.left[0].solved and kept.left[0].summary is None and kept.left[1].steps[-1][0]["dones"]
    assert handed_over.files.keys() == {"episodes/000000.pkl.gz"}
    gone(kept)
    assert len(robot().left) == 2  # the driver had no chance to say that it has them
    assert len(list((tmp_path / "spool").iterdir())) == 5 and other.locks


def test_a_learner_that_does_not_see_the_drivers_folder_says_so(tmp_path):
    host = LearnerHost()
    assert host.begin("token", {"settings": {"save_dir": tmp_path}}) == host.life
    assert host.exchange(("elsewhere", 1, "a predecessor"), [("save", ())]) is None and host.calls.empty()
    ((name, error),) = host.exchange(host.life, [("load", ())])
    assert name == "error" and f"does not see the driver's {tmp_path}" in str(error)


class Here:
    """A `LearnerHost` in this process with the face of a Ray actor; it is lost at the calls that `lose` names.

    lose: (name of a call, the how manieth of it, whether the learner has still heard it).
    """

    def __init__(self, lose=()):
        self.host, self.lose, self.asked, self.lost = LearnerHost(), list(lose), Counter(), 0

    def __getattr__(self, name):
        method = self.lossy_exchange if name == "exchange" else getattr(self.host, name)
        return type("Method", (), {"remote": staticmethod(method)})

    def lossy_exchange(self, life, calls):
        until = calls[-1][0]
        if life == self.host.life:
            self.asked[until] += 1
            for name, number, heard in self.lose:
                if name == until and self.asked[until] == number:
                    if heard:
                        self.host.exchange(life, calls)
                    self.host.calls.send(("stop", ()))  # it has the lock of the run
                    self.host, self.lost = LearnerHost(), self.lost + 1
                    raise ray.exceptions.RayActorError
        return self.host.exchange(life, calls)


def a_run(demos, out, lose, monkeypatch):
    """What the loop asks of a learner, in short; returns the host, the policy that was evaluated last, and the end."""
    host = Here(lose)
    monkeypatch.setattr(ray_cluster, "start_host", lambda use_gpu: host)
    monkeypatch.setattr(ray_cluster.ray, "put", lambda x: x)
    monkeypatch.setattr(ray_cluster.ray, "get", lambda x, timeout=None: x)
    monkeypatch.setattr(ray_cluster.ray, "get_gpu_ids", list)
    monkeypatch.setattr(ray_cluster.ray, "kill", lambda host: host.host.calls.send(("stop", ())))
    run = training(demos, out, env="Tiny-v0", max_steps=100)
    schedule = Schedule(4, 2, 1, 2, 1.0, 100, imitate_successes=True)
    known = {"script": "a test", "settings": {}, "demos": 0}
    learner = RayLearner(
        run.agent,
        False,
        save_dir=out,
        identity=known,
        schedule=schedule,
        capacity=99,
        demo_capacity=99,
        views=2,
        seed=0,
        limits=limits_for(run.agent, {"image": run.actor.env.observation_space["image"].shape}),
    )
    learner.store_demos(train_hybrid.read_demos(demos, ["image"], FIXED))
    while learner.pretrained < 2:
        learner.pretrain()
    learner.averaged()
    learner.save_averaged(out / "best.pt")
    learner.save(0, {"evaluated": 0, "episode": 0})
    step = 0
    for number in range(4):
        run.actor.start_episode()
        done = False
        while not done:
            transition, corrected = run.actor.act(step)
            learner.add(transition, to_demos=corrected)
            done, step = transition["dones"], step + 1
            if done:
                learner.end_episode(run.actor.solved and not run.actor.helped)
            learner.learn(step)
        learner.catch_up(0)
        if number == 1:
            learner.save(step, {"evaluated": 0, "episode": 2})
    policy = learner.averaged()
    learner.save_averaged(out / "best.pt")
    learner.save(step, {"evaluated": step, "episode": 4})
    learner.catch_up(0)  # a successor that was asked to save has done that before it learned
    learner.save(step, {"evaluated": step, "episode": 4})
    assert learner.learned() <= learner.steps == step and learner.episode == 4
    learner.close()
    return host, policy


def stored_actions(out, buffer):
    parts = [load_checkpoint(out / part["file"]) for part in content(out)["parts"] if part["buffer"] == buffer]
    return np.concatenate([part["columns"]["action"].numpy() for part in parts])


NUM_DEMOS = 24  # transitions
LOSSES = {
    "the demos": [("store_demos", 1, True)],
    "pretraining": [("pretrain", 2, False)],
    "before the first checkpoint": [("save", 1, False)],
    "its last word is a checkpoint": [("save", 2, True)],
    "an episode that it has": [("catch_up", 5, True)],
    "an episode that it lacks, and its successor": [("catch_up", 7, False), ("load", 1, False)],
    "what was evaluated": [("averaged", 2, True), ("save", 3, False)],
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_learner_that_is_lost_has_a_successor_that_knows_the_same(name, demos, tmp_path, monkeypatch):
    host, policy = a_run(demos, tmp_path, LOSSES[name], monkeypatch)
    assert host.lost == len(LOSSES[name])
    files = [[step["actions"] for step in read_episode(path)] for path in episode_files(tmp_path).values()]
    assert np.array_equal(stored_actions(tmp_path, "online"), np.concatenate(files))
    solved = stored_actions(tmp_path, "demo")[NUM_DEMOS:]  # every second episode, alone
    assert np.array_equal(solved, np.concatenate(files[::2]))
    saved = content(tmp_path)
    assert saved["step"] == 4 * LENGTH and saved["progress"] == {"evaluated": 24, "episode": 4, "pretrained": 2}
    updates = saved["agent"]["optimizers"]["actor"]["state"][0]["step"]
    assert updates == 2 + 4 * LENGTH  # what was lost with it is learned once more
    assert equal(policy.actor.state_dict(), load_checkpoint(tmp_path / "best.pt")["modules"]["actor"])


class Gone(BaseException):
    """SIGKILL for the process of a worker."""


class Fragile(TinyEnv):
    """Raises what `errors` has for the how manieth step, of all its robots together."""

    def __init__(self, errors, made):
        super().__init__(human=True)
        self.errors, self.made = errors, made
        made.append(self)

    def step(self, action):
        self.made.steps += 1
        if error := self.errors.pop(self.made.steps, None):
            raise error
        return super().step(action)

    def close(self):
        self.made.closed += 1


class Made(list):
    """The environments, and what happened to all of them."""

    steps = closed = 0


class NoCluster:
    """What `Robots` uses of Ray, with the workers in this process; a call is made when it is waited for."""

    put = staticmethod(lambda x: x)

    def remote(self, **options):
        return lambda kind: types.SimpleNamespace(remote=lambda: self.worker(kind()))

    def worker(self, it):
        def call(name, *arguments, **named):
            try:
                return getattr(it, name)(*arguments, **named)
            except Gone:
                raise ray.exceptions.RayActorError from None
            except Exception as error:
                raise ray.exceptions.RayTaskError(name, "its traceback", error).as_instanceof_cause() from None

        methods = {name: partial(call, name) for name in ("set_up", "run_episode", "evaluate", "close")}
        face = {name: types.SimpleNamespace(remote=partial(partial, method)) for name, method in methods.items()}
        return types.SimpleNamespace(it=it, **face)

    def get(self, call, timeout=None):
        return call()

    def kill(self, worker):
        gone(worker.it)


@pytest.fixture
def robots(robot, tmp_path, monkeypatch):
    """Makes two `Robots` without a cluster, whose environments raise the `errors`."""
    monkeypatch.setattr(ray_robots, "ray", NoCluster())
    monkeypatch.setattr(ray_robots, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(ray_robots, "POLL_SECONDS", 0.01)
    made = []

    def make(errors, max_steps=10**6, make_env=None):
        kept, values = Made(), pack(acting_modules(robot.agent)).numpy()
        host = types.SimpleNamespace(newest=types.SimpleNamespace(remote=lambda known: lambda: ("newest", values)))
        learner = types.SimpleNamespace(host=host, steps=0, learned=lambda: 0)
        settings = {"seed": 0, "random_steps": 0, "sparse": True, "control_hz": None, "max_steps": max_steps}
        made.append(
            Robots(
                robot.agent,
                2,
                learner,
                save_dir=tmp_path / "run",
                resume=False,
                make_env=make_env or (lambda: Fragile(errors, kept)),
                add_human=lambda env, seed: env,
                waits=False,
                settings=settings,
            )
        )
        return made[-1], kept

    make.agent = robot.agent
    yield make
    for each in made:
        each.end()


def take(robots, episodes):
    """The loop's part: lengths of the next episodes."""
    lengths = []
    for _ in range(episodes):
        robots.start_episode()
        steps = []
        while robots.has_more:
            steps.append(robots.act(0))
        assert [transition["dones"] for transition, _ in steps] == [False] * (len(steps) - 1) + [True]
        lengths.append(len(steps))
    return lengths


def test_robots_go_on_when_one_is_lost(robots, tmp_path, capsys):
    run, made = robots({9: Gone(), 21: RuntimeError("a cable")})
    assert run.evaluate(robots.agent, None, 1, seed=0).episodes == 1
    assert made.steps == LENGTH and not run.running
    lengths = take(run, 10)
    run.close()
    run.end()
    out = capsys.readouterr().out
    assert out.count("is there, on") == 4 and out.count("was left on a robot's machine and is taken over") >= 1
    assert "is lost (RayActorError)" in out and "is lost (RuntimeError: a cable)" in out
    files = episode_files(tmp_path / "run")
    assert list(files) == list(range(len(files))) and len(files) >= 10
    assert [len(read_episode(files[number])) for number in range(10)] == lengths
    assert sorted(lengths) == sorted([n for n in lengths if n < LENGTH]) + [LENGTH] * lengths.count(LENGTH)
    assert sum(len(read_episode(path)) for path in files.values()) == run.steps
    assert run.figures()["robots"] == 2 and len(run.recent) == lengths.count(LENGTH) and made.closed == len(made)


def test_what_breaks_the_contract_ends_the_run(robots):
    run, _ = robots({3: ContractError("a camera has changed")})
    with pytest.raises(ContractError, match="a camera has changed"):
        take(run, 10)
    with pytest.raises(ContractError, match="a camera has changed"):
        run.evaluate(robots.agent, None, 1)


def test_robots_make_no_more_steps_than_the_run_takes(robots, tmp_path):
    run, _ = robots({}, max_steps=3 * LENGTH)
    assert take(run, 3) == [LENGTH] * 3
    time.sleep(0.3)
    assert len(episode_files(tmp_path / "run")) <= 4  # two were at work


def test_robots_that_cannot_be_set_up_say_why(robots):
    def broken():
        raise ValueError("no such arm")

    with pytest.raises(ValueError, match="a robot cannot be set up: no such arm"):
        robots({}, make_env=broken)

    def watched():
        return [thread for thread in threading.enumerate() if "_watched" in thread.name]

    deadline = time.monotonic() + 30.0
    while watched() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not watched()  # they would go on by Ray


# ---------------------------------------------------------------- on a cluster of two nodes


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A node for the learner and one with two robots; `driver` starts the script on the former."""
    from ray.cluster_utils import Cluster

    (tmp_path / "watched").mkdir()
    for name, value in {"TINY_WATCHED": tmp_path / "watched", "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, str(value))
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    made.robots = made.add_node(resources={"robot": 2}, **node)
    processes = []

    def driver(line):
        process = subprocess.Popen(
            [sys.executable, ROOT / "train_hybrid.py", *line, "--ray_address", made.address],
            cwd=tmp_path,
            stdout=open(tmp_path / "log", "a"),
            stderr=subprocess.STDOUT,
        )
        processes.append(process)
        return process

    made.driver, made.node, made.log = driver, node, lambda: (tmp_path / "log").read_text()
    yield made
    for process in processes:
        process.kill()
    made.shutdown()


def wait(condition, *arguments, seconds=400):
    end = time.monotonic() + seconds
    while not condition(*arguments):
        assert time.monotonic() < end
        time.sleep(0.05)


def more_episodes(cluster, driver, out, count):
    """Wait for the run to have so many more."""
    wanted = max(episode_files(out), default=0) + count
    wait(lambda: max(episode_files(out), default=0) >= wanted or driver.poll() is not None)
    assert driver.poll() is None, cluster.log()


def processes(cluster, what):
    """Process numbers that the driver has said, the newest last."""
    return [int(number) for number in re.findall(f"(?:{what})" + r".*?\(process (\d+)\)", cluster.log())]


def assert_nothing_is_lost(cluster, out, tmp_path):
    """What the environments call finished is on disk, once, and all that the learner has is what is on disk."""
    files = {number: read_episode(path) for number, path in episode_files(out).items()}
    ends = [fingerprint(steps[-1]["next_observations"]) for steps in files.values()]
    assert len(set(ends)) == len(ends)
    waiting = [read_episode(path) for path in out.glob("robots/*/*/episodes/*.pkl.gz")]  # for the run to go on
    lost = {path.name for path in (tmp_path / "watched").iterdir()} - set(ends)
    lost -= {fingerprint(steps[-1]["next_observations"]) for steps in waiting if steps}
    lengths = [len(steps) for steps in [*files.values(), *waiting]]
    assert len(lost) <= lengths.count(LENGTH - 1), lengths  # killed between the last step and its writing
    saved = content(out)
    parts = [load_checkpoint(out / part["file"]) for part in saved["parts"] if part["buffer"] == "online"]
    actions = np.concatenate([part["columns"]["action"].numpy() for part in parts])
    recorded = [files[number] for number in range(saved["progress"]["episode"])]
    assert np.array_equal(actions, [step["actions"] for steps in recorded for step in steps])
    assert saved["step"] == len(actions)
    return files


@pytest.mark.slow
def test_a_run_and_its_resumption(cluster, demos, tmp_path):
    out = tmp_path / "run"
    assert cluster.driver(words(demos, out)).wait(600) == 0, cluster.log()
    assert {file.name for file in out.iterdir()} >= RUN_OUTPUTS | {"evaluation.gif", "evaluation.json", "episodes"}
    files = assert_nothing_is_lost(cluster, out, tmp_path)
    assert {step["robot"] for steps in files.values() for step in steps} == {0, 1}
    assert all(
        [s["corrected"] for s in steps] == [i + 1 in HUMAN_STEPS for i in range(LENGTH)] for steps in files.values()
    )
    assert set(metrics(out, "eval_success")) == {0, 5 * LENGTH, 10 * LENGTH}
    assert set(metrics(out, "robots").values()) == {2.0} and min(metrics(out, "parameters_age").values()) >= 0
    best = load_checkpoint(out / "best.pt")
    assert best["kind"] == "SACAgent" and not equal(best["modules"]["actor"], content(out)["agent"]["modules"]["actor"])
    assert cluster.driver(words(demos, out, max_steps=20 * LENGTH, resume=True)).wait(600) == 0, cluster.log()
    assert content(out)["step"] >= 20 * LENGTH
    assert_nothing_is_lost(cluster, out, tmp_path)


@pytest.mark.slow
def test_robots_and_learner_are_killed_and_replaced(cluster, demos, tmp_path):
    """SIGKILL for a robot, the learner and the whole node of the robots, one after the other, in one run."""
    out = tmp_path / "run"
    driver = cluster.driver(words(demos, out, max_steps=10**6, eval_every=20 * LENGTH))

    more = partial(more_episodes, cluster, driver, out)
    more(30)
    os.kill(processes(cluster, "robot 0 is there")[-1], signal.SIGKILL)
    wait(lambda: len(processes(cluster, "robot 0 is there")) == 2)
    more(10)
    for _ in range(2):
        starts = len(processes(cluster, "successor")) + 1
        os.kill(processes(cluster, "learner: on|its successor")[-1], signal.SIGKILL)
        wait(lambda count: cluster.log().count("the learner is back") == count, starts)
        more(10)
    cluster.remove_node(cluster.robots, allow_graceful=False)
    wait(lambda: cluster.log().count("is lost") == 3)
    cluster.add_node(resources={"robot": 2}, **cluster.node)
    more(10)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(300) == 130, cluster.log()
    longer = LENGTH * (len(episode_files(out)) + 10)
    resumed = cluster.driver(words(demos, out, max_steps=longer, resume=True))
    assert resumed.wait(600) == 0, cluster.log()
    assert_nothing_is_lost(cluster, out, tmp_path)


@pytest.mark.slow
def test_the_driver_is_killed(cluster, demos, tmp_path):
    out = tmp_path / "run"
    for kill in range(4):
        line = words(demos, out, max_steps=10**6, eval_every=10 * LENGTH, resume=True if kill else None)
        driver = cluster.driver(line)
        more_episodes(cluster, driver, out, 20)
        time.sleep(np.random.default_rng(kill).uniform(0, 0.5))
        driver.kill()
        driver.wait()
    resumed = cluster.driver(words(demos, out, max_steps=10, resume=True))
    assert resumed.wait(600) == 0, cluster.log()
    resumed = cluster.driver(words(demos, out, max_steps=content(out)["step"] + 5 * LENGTH, resume=True))
    assert resumed.wait(600) == 0, cluster.log()
    assert_nothing_is_lost(cluster, out, tmp_path)


@pytest.mark.slow
def test_no_cluster_is_refused(demos, tmp_path, capsys):
    refused(train_hybrid, capsys, "no cluster to join", words(demos, tmp_path / "run"))

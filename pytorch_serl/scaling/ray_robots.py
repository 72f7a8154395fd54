"""Robots on a Ray cluster, several for one learner: what train_hybrid.py has in place of its actor; docs/cluster.md.

Each robot is a Ray actor on a node that offers the resource `robot`, with an environment and an `Actor`
(training/actor.py) in it. It runs whole episodes with the parameters that it is given, and its machine keeps each step
on disk until the driver has the episode. `Robots` is what the loop sees of them.
"""

import atexit
import io
import os
import queue
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.episode_files import EpisodeWriter, episode_files, read_episode
from pytorch_serl.scaling.parameters import acting_modules, pack, unpack
from pytorch_serl.scaling.ray_cluster import ROBOT, RayLearner
from pytorch_serl.training import build
from pytorch_serl.training.actor import CALLED_SUCCESS, RECENT, Actor, recent_figures
from pytorch_serl.training.evaluate import Evaluation, evaluate
from pytorch_serl.training.rewards import ContractError
from pytorch_serl.training.robot import close_robots, guarded
from pytorch_serl.training.run import seed_all, uninterrupted
from pytorch_serl.utils.files import atomic_write, try_lock

POLL_SECONDS = 0.2
SET_UP_SECONDS = 120.0  # for the first robot to be there
RETRY_SECONDS = 10.0  # before a robot whose environment failed is tried again
END_SECONDS = 10.0  # for the environments to be closed
OWN_FOLDER = re.compile("[0-9a-f]{32}")  # of a worker in SPOOL; a file manager may leave others
SPOOL = "robots"  # folder of a run, on every robot's machine: episodes that the driver does not have yet


@dataclass
class Episode:
    """One episode as it comes from a robot.

    steps: each transition as a buffer takes it, and whether a human acted. files: what the robot's machine wrote,
    by name in the run's folder. pace: figures of `Pace`. summary: as `Actor.recent` has it; None for an episode
    that a robot's machine kept for the driver after a kill.
    """

    steps: list[tuple[dict[str, Any], bool]]
    files: dict[str, bytes]
    solved: bool
    marks: dict[str, int]
    pace: dict[str, float] = field(default_factory=dict)
    summary: list[float] | None = None


class _MarkedWriter(EpisodeWriter):
    """Writes with every step which robot made it, and by how old parameters."""

    marks: dict[str, int]

    def add(self, step: dict[str, Any], next_obs: dict[str, Any]) -> None:
        super().add(step | self.marks, next_obs)


class RobotWorker:
    """The Ray actor with a robot in it."""

    def set_up(
        self,
        state: bytes,
        make_env: Callable[[], gym.Env],
        add_human: Callable[..., gym.Env],
        number: int,
        spool: Path,
        seed: int,
        settings: dict[str, Any],
    ) -> tuple[str, int, list[Episode]]:
        """Make the environment and the agent.

        Args:
            state: `torch.save` of the agent's state; later only what training changes comes.
            number: of the robot.
            spool: folder of the run for episodes that the driver does not have yet.
            seed: of this worker's own random numbers.
            settings: the other arguments of `Actor`.
        Returns: the machine's name, the process, and episodes that a worker or a run that was killed left there.
        Raises ValueError as `make_env` does.
        """
        seed_all(seed)
        content = torch.load(io.BytesIO(state), weights_only=True, map_location="cpu")
        self.agent, self.number = build.restore_agent(content, "cpu", "the driver's agent"), number
        self.env = guarded(make_env())
        self.locks, self.handed_over = [], []
        left = [
            folder for folder in sorted(spool.glob("*")) if OWN_FOLDER.fullmatch(folder.name) and self._claim(folder)
        ]
        self.folder = spool / uuid.uuid4().hex
        self._claim(self.folder)
        self.writer = _MarkedWriter(self.folder, [*self.agent.image_keys, "state"])
        self.actor = Actor(self.agent, add_human(self.env, seed=seed), writer=self.writer, **settings)
        episodes = [self._left(path) for folder in left for path in episode_files(folder).values()]
        self.handed_over += left
        return socket.gethostname(), os.getpid(), [episode for episode in episodes if episode.steps]

    def run_episode(self, values: np.ndarray, episode: int, step: int, marks: dict[str, int]) -> Episode:
        """One training episode, seeded by its number; the driver has the ones before."""
        with self._closed_on_error():
            return self._run_episode(values, episode, step, marks)

    def _run_episode(self, values, episode, step, marks):
        self._forget()
        unpack(torch.tensor(values), acting_modules(self.agent))
        self.actor.episode, self.writer.marks = episode, {"robot": self.number} | marks
        self.actor.start_episode()
        steps = []
        while not steps or not steps[-1][0]["dones"]:
            steps.append(self.actor.act(step + len(steps)))
        paths = [self.writer.path, *(self.writer.folder.parent / CALLED_SUCCESS).glob("*.png")]
        self.handed_over += paths
        return Episode(
            steps,
            _contents(paths),
            self.actor.solved,
            self.writer.marks,
            self.actor.pace.figures(),
            self.actor.recent[-1],
        )

    def evaluate(self, values: np.ndarray, episodes: int, options: dict[str, Any]) -> Evaluation:
        """Unaided episodes with these parameters; see `evaluate`."""
        unpack(torch.tensor(values), acting_modules(self.agent))
        with self._closed_on_error():
            return evaluate(self.agent, self.env, episodes, **options)

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """A worker whose environment failed is killed by the driver, which would close nothing."""
        try:
            yield
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Close the environment; what the driver does not have yet stays on this machine."""
        close_robots(self.env)

    def end(self) -> None:
        """The driver has everything and wants nothing more."""
        self.close()
        shutil.rmtree(self.folder)

    def _claim(self, folder: Path) -> bool:
        """Take a folder for this process as long as it lives; False where a process that lives has it."""
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")
        if not try_lock(file):
            file.close()
            return False
        self.locks.append(file)
        return True

    def _left(self, path: Path) -> Episode:
        recorded = self.actor.limits.recorded(path, read_episode(path))
        steps = list(zip(build.stored_transitions(self.agent, recorded), (step["corrected"] for step in recorded)))
        names = ("robot", "parameters_step", "parameters_age")
        marks = {name: recorded[0][name] for name in names} if recorded else {}
        return Episode(steps, _contents([path]), bool(recorded) and bool(recorded[-1].get("succeed")), marks)

    def _forget(self) -> None:
        """Delete what the driver has."""
        for path in self.handed_over:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.handed_over = []


def _contents(paths: list[Path]) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


# ---------------------------------------------------------------- the robots, seen from the driver


class _Robot:
    """What the driver knows of a robot: its worker, and what that does."""

    def __init__(self, number: int):
        self.number, self.worker, self.retry, self.there = number, None, 0.0, False
        self.request: _Request | None = None


@dataclass
class _Request:
    """An evaluation that the loop waits for."""

    values: Any
    episodes: int
    options: dict[str, Any]
    result: Future = field(default_factory=Future)


class _Pace:
    """The control rate of the robot that keeps it worst."""

    def __init__(self):
        self.robots: dict[int, dict[str, float]] = {}

    def figures(self) -> dict[str, float]:
        names = {name for figures in self.robots.values() for name in figures}
        return {name: max(figures.get(name, 0.0) for figures in self.robots.values()) for name in sorted(names)}


class Robots:
    """Stands where the loop has its `Actor`: an episode is the next one that any robot has finished.

    The robots go on by themselves, in a thread, with the newest parameters at the start of each episode. An episode
    is in the run's folder before its robot is given the next one.

    Args:
        agent: its copy acts on every robot.
        count: robots; those that are not there join when a node offers them.
        learner: gives the newest parameters.
        save_dir: the run's, absolute.
        resume: the run goes on: episodes that robots' machines kept belong to it.
        make_env: makes the environment on a robot's node; raises ValueError where it does not fit.
        add_human: puts the human beside an environment, `build.add_human` with all but its first argument and the seed.
        waits: no robot begins an episode while as many as there are robots wait to be learned from.
        settings: the other arguments of `Actor`.
    Raises ValueError where no robot can be set up.
    """

    def __init__(
        self,
        agent: SACAgent,
        count: int,
        learner: RayLearner,
        *,
        save_dir: Path,
        resume: bool,
        make_env: Callable[[], gym.Env],
        add_human: Callable[..., gym.Env],
        waits: bool,
        settings: dict[str, Any],
    ):
        self.learner, self.save_dir, self.waits, self.settings = learner, save_dir, waits, settings
        self.recent, self.ages, self.pace, self.episode = [], [], _Pace(), 0
        self.current: Episode | None = None  # of which `act` returned the steps before `place`
        state = io.BytesIO()
        torch.save(agent.state_dict(), state)
        self.set_up = (ray.put(state.getvalue()), make_env, add_human)
        self.spool = save_dir / SPOOL / self._run_id(resume)
        self.episodes, self.requests, self.left = queue.SimpleQueue(), queue.SimpleQueue(), []
        self.running, self.workers, self.started, self.arrived, self.steps = False, 0, 0, 0, 0
        self.asked = self.version = self.parameters = self.failure = None
        self.ended = False
        self.busy: dict[Any, _Robot] = {}
        self.idle: list[_Robot] = []
        self.robots = [_Robot(number) for number in range(count)]
        for robot in self.robots:
            self._start(robot)
        self._wait_for_first()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        atexit.register(self.end)  # before Ray ends

    def _run_id(self, resume: bool) -> str:
        """The run's name on the robots' machines, so that no run takes over another one's episodes."""
        file = self.save_dir / SPOOL / "run"
        if not (resume and file.is_file()):
            with atomic_write(file) as out:
                out.write(uuid.uuid4().hex.encode())
        return file.read_text()

    def _wait_for_first(self) -> None:
        done, _ = ray.wait(list(self.busy), timeout=SET_UP_SECONDS)
        if not done:
            raise ValueError(f"no robot was free within {SET_UP_SECONDS:.0f} s; does another run hold them?")
        try:
            ray.get(done[0])
        except RayTaskError as error:
            raise ValueError(f"a robot cannot be set up: {error.cause}") from None
        except RayError as error:
            raise ValueError(f"a robot cannot be set up: {str(error).splitlines()[0]}") from None

    # ---------------------------------------------------------------- what the loop calls

    def start_episode(self) -> None:
        """Wait for the next finished episode."""
        if not self.running:
            self.started = self.arrived = self.episode
            self.steps, self.running = self.learner.steps, True
        entry = self.episodes.get()
        if isinstance(entry, Exception):
            raise entry
        with uninterrupted():
            self.current, self.place = entry, 0
            self.episode += 1

    def act(self, step: int) -> tuple[dict[str, Any], bool]:
        """The episode's next transition, and whether a human acted."""
        transition, corrected = self.current.steps[self.place]
        self.place += 1
        self.in_control = "human" if corrected else "policy"
        if transition["dones"]:
            self.solved, self.helped = self.current.solved, sum(helped for _, helped in self.current.steps)
            self.ages = [*self.ages, self.current.marks.get("parameters_age", 0)][-RECENT:]
            if self.current.summary is not None:
                self.recent = [*self.recent, self.current.summary][-RECENT:]
        return transition, corrected

    @property
    def has_more(self) -> bool:
        """Whether the episode has steps that `act` did not return yet."""
        return self.current is not None and self.place < len(self.current.steps)

    def figures(self) -> dict[str, float]:
        """As `Actor.figures`; robots that are there; the largest age of the parameters, in environment steps."""
        age = {"parameters_age": max(self.ages)} if self.ages else {}
        return recent_figures(self.recent) | age | {"robots": sum(robot.there for robot in self.robots)}

    def evaluate(self, policy: SACAgent, env: None, episodes: int, **options: Any) -> Evaluation:
        """As `evaluate`, on the robot that is free first."""
        request = _Request(ray.put(pack(acting_modules(policy)).cpu().numpy()), episodes, options)
        if self.failure is not None:
            raise self.failure
        self.requests.put(request)
        return request.result.result()

    def close(self) -> None:
        """No more training episodes; those that have begun are not waited for."""
        self.running = False

    def end(self) -> None:
        """Close the environments; a robot whose episode does not end within END_SECONDS is killed amid it."""
        self.ended = True
        self.thread.join()
        calls = [robot.worker.end.remote() for robot in self.idle]
        calls += [robot.worker.close.remote() for robot in self.busy.values()]  # after what they are at
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=END_SECONDS)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while not self.ended:
                self._fetch_parameters()
                if not self.busy:
                    time.sleep(POLL_SECONDS)
                done = ray.wait(list(self.busy), timeout=POLL_SECONDS)[0] if self.busy else []
                for task in done:
                    self._finish(self.busy.pop(task), task)
                while self.running and self.left:
                    self._store_left(self.left.pop(0))
                for robot in list(self.idle):
                    self._give_work(robot)
                for robot in self.robots:
                    if robot.worker is None and time.monotonic() >= robot.retry:
                        self._start(robot)
        except Exception as error:  # the loop raises it
            self.failure = error
            self.episodes.put(error)
            requests = [robot.request for robot in self.robots if robot.request is not None]
            while not self.requests.empty():
                requests.append(self.requests.get())
            for request in requests:
                request.result.set_exception(error)

    def _start(self, robot: _Robot) -> None:
        """Have a worker started; where no node offers a robot, it is when one does."""
        worker = ray.remote(num_cpus=0, resources={ROBOT: 1})(RobotWorker)
        robot.worker, self.workers = worker.remote(), self.workers + 1
        seed = self.settings["seed"] + 1_000_003 * self.workers  # no two workers explore by the same numbers
        task = robot.worker.set_up.remote(*self.set_up, robot.number, self.spool, seed, self.settings)
        self.busy[task] = robot

    def _finish(self, robot: _Robot, task: Any) -> None:
        """Take what a robot has done."""
        try:
            result = ray.get(task)
        except ContractError as error:
            raise error.cause from None
        except RayTaskError as error:
            return self._lose(robot, f"{type(error.cause).__name__}: {error.cause}", RETRY_SECONDS)
        except RayError as error:
            return self._lose(robot, type(error).__name__, 0.0)
        if robot.request is not None:
            robot.request.result.set_result(result)
            robot.request = None
        elif isinstance(result, Episode):
            self._store(result)
            self.pace.robots[robot.number] = result.pace
        else:
            machine, process, left = result
            robot.there, self.left = True, self.left + left
            tqdm.write(f"robot {robot.number} is there, on {machine} (process {process})")
        self.idle.append(robot)

    def _lose(self, robot: _Robot, reason: str, seconds: float) -> None:
        tqdm.write(f"robot {robot.number} is lost ({reason}); it is started again where a node offers one")
        ray.kill(robot.worker)
        robot.worker, robot.there, robot.retry = None, False, time.monotonic() + seconds
        if robot.request is not None:
            self.requests.put(robot.request)
            robot.request = None

    def _give_work(self, robot: _Robot) -> None:
        if not self.requests.empty():
            robot.request = request = self.requests.get()
            task = robot.worker.evaluate.remote(request.values, request.episodes, request.options)
        elif self.running and self.parameters is not None and not self._too_many():
            marks = {"parameters_step": self.learned, "parameters_age": max(0, self.steps - self.learned)}
            task = robot.worker.run_episode.remote(self.parameters, self.started, self.steps, marks)
            self.started += 1
        else:
            return
        self.idle.remove(robot)
        self.busy[task] = robot

    def _too_many(self) -> bool:
        return self.waits and self.episodes.qsize() >= len(self.robots)

    def _store(self, episode: Episode) -> None:
        """Put an episode on disk under the number of its arrival, and in the loop's queue."""
        for name, content in episode.files.items():
            folder, _, file = name.partition("/")
            with atomic_write(self.save_dir / folder / f"{self.arrived:06d}{file[6:]}") as out:
                out.write(content)
        self.arrived += 1
        self.steps += len(episode.steps)
        self.episodes.put(episode)

    def _store_left(self, episode: Episode) -> None:
        """Likewise for one that a robot's machine kept, unless the driver died after it had it."""
        (content,) = episode.files.values()
        known = episode_files(self.save_dir).values()
        if not any(path.stat().st_size == len(content) and path.read_bytes() == content for path in known):
            tqdm.write(f"an episode of {len(episode.steps)} steps was left on a robot's machine and is taken over")
            self._store(episode)

    def _fetch_parameters(self) -> None:
        """Take the learner's newest parameters when they are there; a learner that is gone has none."""
        if self.asked is None:
            self.asked = self.learner.host.newest.remote(self.version)
        if not ray.wait([self.asked], timeout=0)[0]:
            return
        try:
            version, values = ray.get(self.asked)
        except RayError:
            version, values = self.version, None
        self.asked = None
        if values is not None:
            self.version, self.parameters = version, ray.put(values)  # here, where they outlive the learner
            self.learned = self.learner.learned()

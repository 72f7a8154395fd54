"""Robots on a Ray cluster, several for one learner: what train_hybrid.py has in place of its actor; docs/cluster.md.

Each robot is a Ray actor on a node that offers the resource `robot`, with an environment and an `Actor`
(training/actor.py) in it. It runs whole episodes with the parameters that it is given, and its machine keeps each step
on disk until the driver has the episode. `Robots` is what the loop sees of them.
"""

import atexit
import itertools
import os
import queue
import shutil
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
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
from pytorch_serl.scaling.parameters import acting_modules, from_bytes, pack, to_bytes, unpack
from pytorch_serl.scaling.ray_cluster import ROBOT, RayLearner
from pytorch_serl.training import build
from pytorch_serl.training.actor import RECENT, Actor, recent_figures
from pytorch_serl.training.evaluate import Evaluation, evaluate
from pytorch_serl.training.rewards import ContractError
from pytorch_serl.training.robot import close_robots, guarded
from pytorch_serl.training.run import SPOOL, seed_all, uninterrupted
from pytorch_serl.utils.files import atomic_write, try_lock

POLL_SECONDS = 0.2
SET_UP_SECONDS = 120.0  # for the first robot to be there
RETRY_SECONDS = 10.0  # before a robot whose environment failed is tried again
END_SECONDS = 10.0  # for the environments to be closed
OWN_FOLDER = "[0-9a-f]" * 32  # of a worker in SPOOL; a file manager may leave others


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
    pace: dict[str, float] = field(default_factory=dict)
    summary: list[float] | None = None


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
            state: of the agent; later only what training changes comes.
            number: of the robot.
            spool: folder of the run for episodes that the driver does not have yet.
            seed: of this worker's own random numbers.
            settings: the other arguments of `Actor`.
        Returns: the machine's name, the process, and episodes that a worker or a run that was killed left there.
        Raises ValueError as `make_env` does.
        """
        seed_all(seed)
        self.agent, self.number = build.restore_agent(from_bytes(state, "cpu"), "cpu", "the driver's agent"), number
        self.env = guarded(make_env())
        self.locks = []
        self.left = [folder for folder in sorted(spool.glob(OWN_FOLDER)) if self._claim(folder)]
        while not self._claim(folder := spool / uuid.uuid4().hex):
            pass  # another worker, which began at the same moment, took it for one that was left
        self.folder = folder
        self.writer = EpisodeWriter(self.folder, [*self.agent.image_keys, "state"])
        self.actor = Actor(self.agent, add_human(self.env, seed=seed), writer=self.writer, **settings)
        episodes = [self._left(path) for folder in self.left for path in episode_files(folder).values()]
        return socket.gethostname(), os.getpid(), [episode for episode in episodes if episode.steps]

    def run_episode(self, values: np.ndarray, episode: int, step: int, marks: dict[str, int]) -> Episode:
        """One training episode, seeded by its number; the driver has the ones before, which go."""
        for folder in [*self.left, *self.folder.glob("[!.]*")]:
            shutil.rmtree(folder)
        self.left = []
        unpack(torch.tensor(values), acting_modules(self.agent))
        self.actor.episode, self.writer.marks = episode, {"robot": self.number} | marks
        self.actor.start_episode()
        steps = []
        while not steps or not steps[-1][0]["dones"]:
            steps.append(self.actor.act(step + len(steps)))
        files = _contents(self.folder.glob("*/*"))
        return Episode(steps, files, self.actor.solved, self.actor.pace.figures(), self.actor.recent[-1])

    def evaluate(self, values: np.ndarray, episodes: int, options: dict[str, Any]) -> Evaluation:
        """Unaided episodes with these parameters; see `evaluate`."""
        unpack(torch.tensor(values), acting_modules(self.agent))
        return evaluate(self.agent.averaged(), self.env, episodes, **options)

    def close(self, everything: bool = False) -> None:
        """Close the environment; what is here stays on this machine unless the driver has `everything`."""
        close_robots(self.env)
        if everything:
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
        steps = [(step, step["corrected"]) for step in build.stored_transitions(self.agent, recorded, self.actor.views)]
        return Episode(steps, _contents([path]), bool(recorded) and bool(recorded[-1].get("succeed")))


def _contents(paths: Iterable[Path]) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


# ---------------------------------------------------------------- the robots, seen from the driver


class Robots:
    """Stands where the loop has its `Actor`: an episode is the next one that any robot has finished.

    The robots go on by themselves, each in a thread, with the newest parameters at the start of each episode. An
    episode is in the run's folder before its robot is given the next one.

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
        self.count, self.learner, self.save_dir, self.waits, self.settings = count, learner, save_dir, waits, settings
        self.recent, self.ages, self.paces, self.episode = [], deque(maxlen=RECENT), {}, 0
        self.rest = deque()  # steps of the episode that `act` did not return yet
        self.set_up = (ray.put(to_bytes(agent.state_dict())), make_env, add_human)
        self.spool = save_dir / SPOOL / self._run_id(resume)
        self.episodes, self.requests = queue.SimpleQueue(), queue.SimpleQueue()
        self.begun, self.arrived, self.steps, self.lock = itertools.count(1), 0, 0, threading.Lock()
        self.newest = None  # parameters, and for how many steps they have learned
        self.running = self.ended = False
        self.workers, self.there, self.first, self.failure = {}, set(), threading.Event(), None
        works = [*((self._drive, number) for number in range(count)), (self._follow,)]
        self.threads = [threading.Thread(target=self._watched, args=work, daemon=True) for work in works]
        atexit.register(self.end)  # before Ray ends
        for thread in self.threads:
            thread.start()
        if not self.first.wait(SET_UP_SECONDS):
            self.failure = ValueError(f"no robot was free within {SET_UP_SECONDS:.0f} s; does another run hold them?")
        if self.failure is not None:
            self.end()
            raise self.failure

    def _run_id(self, resume: bool) -> str:
        """The run's name on the robots' machines, so that no run takes over another one's episodes."""
        file = self.save_dir / SPOOL / "run"
        if not (resume and file.is_file()):
            with atomic_write(file) as out:
                out.write(uuid.uuid4().hex.encode())
        return file.read_text()

    # ---------------------------------------------------------------- what the loop calls

    def start_episode(self) -> None:
        """Wait for the next finished episode."""
        if not self.running:
            self.arrived, self.steps = self.episode, self.learner.steps
            self.started = itertools.count(self.episode)
            self.running = True
        episode = self._wait(self.episodes)
        with uninterrupted():
            self.rest, self.solved = deque(episode.steps), episode.solved
            self.helped = sum(corrected for _, corrected in episode.steps)
            self.recent = [*self.recent, *[episode.summary] * (episode.summary is not None)][-RECENT:]
            self.episode += 1

    def act(self, step: int) -> tuple[dict[str, Any], bool]:
        """The episode's next transition, and whether a human acted."""
        transition, corrected = self.rest.popleft()
        self.in_control = "human" if corrected else "policy"
        return transition, corrected

    @property
    def has_more(self) -> bool:
        """Whether the episode has steps that `act` did not return yet."""
        return bool(self.rest)

    def figures(self) -> dict[str, float]:
        """As `Actor.figures`, of pace those of the robot that keeps it worst; robots that are there; the largest age of
        the parameters, in environment steps."""
        paces = list(self.paces.values())  # threads add to it
        pace = {name: max(figures.get(name, 0.0) for figures in paces) for name in sorted(set().union(*paces))}
        age = {"parameters_age": max(self.ages)} if self.ages else {}
        return recent_figures(self.recent) | pace | age | {"robots": len(self.there)}

    def evaluate(self, policy: SACAgent, env: None, episodes: int, **options: Any) -> Evaluation:
        """As `evaluate`, on the robot that is free first."""
        answer = queue.SimpleQueue()
        self.requests.put((answer, (pack(acting_modules(policy)).cpu().numpy(), episodes, options)))
        return self._wait(answer)

    def close(self) -> None:
        """No more training episodes; those that have begun are not waited for."""
        self.running = False

    def end(self) -> None:
        """Close the environments; a robot whose episode does not end within END_SECONDS is killed amid it."""
        atexit.unregister(self.end)
        self.ended, end = True, time.monotonic() + END_SECONDS
        for number, worker in list(self.workers.items()):
            if number not in self.there:  # it waits for a node, and would wait on
                ray.kill(worker)
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _wait(self, answers: queue.SimpleQueue) -> Any:
        """What comes next; raises what ended a thread."""
        while self.failure is None:
            with suppress(queue.Empty):
                return answers.get(timeout=POLL_SECONDS)
        raise self.failure

    # ---------------------------------------------------------------- the threads

    def _watched(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:  # the loop raises it
            self.failure = error
            self.first.set()

    def _drive(self, number: int) -> None:
        """Keep a robot at work: where no node offers one, it begins when one does, and where it is lost, anew."""
        while not self.ended:
            worker = self.workers[number] = ray.remote(num_cpus=0, resources={ROBOT: 1})(RobotWorker).remote()
            try:
                left = self._begin(number, worker)
                while not self.ended:
                    self._give_work(number, worker, left)
                ray.get(worker.close.remote(everything=True))
            except RayError as error:
                if not self.ended:
                    self._lose(number, worker, error)

    def _begin(self, number: int, worker: Any) -> list[Episode]:
        """Set a worker up; returns what its machine has kept for the driver."""
        seed = self.settings["seed"] + 1_000_003 * next(self.begun)  # no two workers explore by the same numbers
        call = worker.set_up.remote(*self.set_up, number, self.spool, seed, self.settings)
        machine, process, left = ray.get(call)
        tqdm.write(f"robot {number} is there, on {machine} (process {process})")
        self.there.add(number)
        self.first.set()
        return left

    def _give_work(self, number: int, worker: Any, left: list[Episode]) -> None:
        """Have a robot do what there is to do, an evaluation first, and take what comes of it."""
        request = None
        with suppress(queue.Empty):
            request = self.requests.get_nowait()
        if request is not None:
            try:
                request[0].put(ray.get(worker.evaluate.remote(*request[1])))
            except RayError:
                self.requests.put(request)  # for the next one that is free
                raise
        elif self.running and left:
            self._store_left(left.pop(0))
        elif self.running and self.newest and not self._enough():
            parameters, learned = self.newest
            marks = {"parameters_step": learned, "parameters_age": max(0, self.steps - learned)}
            episode = ray.get(worker.run_episode.remote(parameters, next(self.started), self.steps, marks))
            self._store(episode)
            self.ages.append(marks["parameters_age"])
            self.paces[number] = episode.pace
        else:
            time.sleep(POLL_SECONDS)

    def _enough(self) -> bool:
        """Whether what has arrived is all that the run takes, or in a simulation as much as is to wait."""
        return self.steps >= self.settings["max_steps"] or (self.waits and self.episodes.qsize() >= self.count)

    def _lose(self, number: int, worker: Any, error: RayError) -> None:
        """Give a worker up. Raises what ends the run: no robot at all, or an environment that breaks the contract."""
        failed = isinstance(error, RayTaskError)  # and its process lives
        cause = error.cause if failed else str(error).splitlines()[0]
        with suppress(RayError):
            ray.get(worker.close.remote(), timeout=END_SECONDS)
        ray.kill(worker)
        if not self.first.is_set():
            raise ValueError(f"a robot cannot be set up: {cause}")
        if isinstance(cause, ContractError):
            raise cause
        self.there.discard(number)
        reason = f"{type(cause).__name__}: {cause}" if failed else type(error).__name__
        tqdm.write(f"robot {number} is lost ({reason}); it is started again where a node offers one")
        time.sleep(RETRY_SECONDS if failed else 0)

    def _store(self, episode: Episode) -> None:
        """Put an episode on disk under the number of its arrival, and in the loop's queue."""
        with self.lock:
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

    def _follow(self) -> None:
        """Take the learner's newest parameters as they come; one that is gone has none."""
        version = None
        while not self.ended:
            with suppress(RayError):
                version, values = ray.get(self.learner.host.newest.remote(version))
                if values is not None:
                    self.newest = ray.put(values), self.learner.learned()  # here, where they outlive the learner
            time.sleep(POLL_SECONDS)

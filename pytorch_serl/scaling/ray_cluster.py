"""train_hybrid.py on a Ray cluster: joining it, and the learner in a Ray actor. docs/cluster.md says how it is set up.

`RayLearner` stands where the loop has its learner. The learner is the one of scaling/processes.py; when it is killed,
Ray starts a successor, which comes back as a resumed run does: from the checkpoint and the episodes recorded since.

Needs `pip install -r requirements/ray.txt`.
"""

import os
import queue
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.demos import Demos
from pytorch_serl.scaling.parameters import pack
from pytorch_serl.scaling.processes import LearnerCalls, LearnerError, serve

try:
    import ray
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ValueError("--ray_address needs Ray: python -m pip install -r requirements/ray.txt") from error

ROBOT = "robot"  # the resource that a node with a robot offers
LEARNER_RESTARTS = 20
EVER = 10**9  # steps that a learner may be behind
TOKEN = ".driver"  # file of a run by which the learner sees that it has the driver's folder


def connect(address: str) -> None:
    """Join the cluster at `address` (`auto`, or host:port).

    Raises ValueError where there is no cluster, or no node of it offers the resource `robot`.
    """
    try:
        ray.init(address, logging_level="WARNING")
        ray.put(0)  # the first one imports pyarrow where there is one
    except ImportError as error:
        raise ValueError(f"--ray_address needs a Ray that works: {error}") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--ray_address {address}: no cluster to join ({reason}); `ray start --head` makes one"
        ) from None
    if not ray.cluster_resources().get(ROBOT):
        raise ValueError(
            f"no node of the cluster offers the resource {ROBOT!r}; on a robot's machine: ray start "
            f"--address=HOST:6379 --resources='{{\"{ROBOT}\": 1}}'"
        )


# ---------------------------------------------------------------- the learner's process


class _Mailbox(queue.SimpleQueue):
    """A queue with the methods of a connection."""

    def poll(self, seconds: float) -> bool:
        return not self.empty()

    send, recv = queue.SimpleQueue.put, queue.SimpleQueue.get


class LearnerHost:
    """The Ray actor with the learner, which works in a thread of it; see `processes.serve`."""

    def __init__(self):
        self.life = socket.gethostname(), os.getpid(), uuid.uuid4().hex  # a successor has another one
        self.calls, self.replies, self.begun = _Mailbox(), _Mailbox(), threading.Lock()
        self.version, self.values = 0, None

    def begin(self, token: str, work: dict[str, Any]) -> tuple[str, int, str]:
        """Make the learner, unless that has been done. What goes wrong, here and later, is a reply.

        Args:
            token: what the driver's folder has in TOKEN.
            work: the arguments of `serve` on the learner.
        Returns: machine, process, and what tells this one from any other.
        """
        file = work["settings"]["save_dir"] / TOKEN
        if not self.begun.acquire(blocking=False):
            return self.life
        if file.is_file() and file.read_text() == token:
            if work["device"].type != "mps":
                work = work | {"device": torch.device("cuda" if ray.get_gpu_ids() else "cpu")}
            threading.Thread(target=serve, args=(self.calls, self.replies, self), kwargs=work, daemon=True).start()
        else:
            text = f"the learner's node {socket.gethostname()} does not see the driver's {file.parent}: start the "
            text += "command on the learner's machine, or give a --save_dir that both of them share"
            self.replies.send(("error", ValueError(text)))
        return self.life

    def exchange(self, life: tuple[str, int, str], calls: list[tuple]) -> list[tuple] | None:
        """Pass calls on to the learner; returns its replies up to the answer to the last one, or to an error.

        None, and passes on nothing, where the calls are meant for a predecessor.
        """
        if life != self.life:
            return None
        for call in calls:
            self.calls.send(call)
        replies = [self.replies.recv()]
        while replies[-1][0] not in (calls[-1][0], "error"):
            replies.append(self.replies.recv())
        return replies

    def write(self, modules: list[torch.nn.Module]) -> None:
        """The learner has newer parameters."""
        self.values, self.version = pack(modules).cpu().numpy(), self.version + 1

    def newest(self, known: Any) -> tuple[Any, np.ndarray | None]:
        """Version and values of the newest parameters; no values where the version is `known`."""
        version = (self.life, self.version)
        return version, None if version == known else self.values


def start_host(use_gpu: bool) -> Any:
    """A `LearnerHost` as a Ray actor: on this node where that has what it needs, else elsewhere."""
    here = ray.get_runtime_context().get_node_id()
    gpus = int(use_gpu and ray.cluster_resources().get("GPU", 0) >= 1)
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    # not soft: Ray starts a successor elsewhere then, where the run's folder may not be
    place = NodeAffinitySchedulingStrategy(here, soft=False) if resources.get("GPU", 0) >= gpus else "DEFAULT"
    host = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=LEARNER_RESTARTS, max_concurrency=4)(LearnerHost)
    return host.options(scheduling_strategy=place).remote()


# ---------------------------------------------------------------- the learner, seen from the driver


class _Lost(Exception):
    """The learner's process is gone, or nobody knows what it has heard."""


class RayLearner(LearnerCalls):
    """The learner in a Ray actor; where that is lost, its successor takes its place in the middle of a call.

    Calls that do not wait go along with the next one that does, at the end of an episode at the latest.

    Args:
        agent: the learner starts as a copy of it.
        use_gpu: where the cluster has one.
        settings: the other arguments of `Learner`; `save_dir` is a folder of the driver and of the learner.
    """

    def __init__(self, agent: SACAgent, use_gpu: bool, **settings: Any):
        super().__init__(agent, settings)
        self.outbox, self.steps, self.cycles, self.episode = [], 0, 0, 0  # calls of `learn`; whole episodes
        self.first = None  # call of a successor: to load the checkpoint, or until there is one, to store the demos
        self.token = settings["save_dir"] / TOKEN
        self.token.parent.mkdir(parents=True, exist_ok=True)
        self.token.write_text(uuid.uuid4().hex)
        self.beginning = (self.token.read_text(), ray.put(self.work))
        del self.work
        self.host = start_host(use_gpu)
        self.life = self._find(None)
        print("learner: on {} (process {})".format(*self.life))

    def end_episode(self, solved_alone: bool) -> None:
        super().end_episode(solved_alone)
        self.episode += 1
        self.catch_up(EVER)  # what is on its way arrives

    def learn(self, step: int) -> dict[str, float]:
        self.steps, self.cycles = step, self.cycles + 1
        return super().learn(step)

    def learned(self) -> int:
        """For how many environment steps the newest parameters have learned."""
        return self.steps - int(self.info.get("steps_behind", 0))

    def store_demos(self, demos: Demos) -> None:
        super().store_demos(demos)
        self.first = ("store_demos", demos)

    def save(self, step: int, progress: dict[str, Any]) -> Path:
        path = super().save(step, progress)
        self.first = ("load",)
        return path

    def load(self) -> tuple[int, dict[str, Any]]:
        self.steps, progress = super().load()
        self.first, self.episode = ("load",), progress["episode"]
        return self.steps, progress

    def recover(self, first: int) -> tuple[int, int]:
        self.episode, steps = super().recover(first)
        self.steps += steps
        return self.episode, steps

    def close(self) -> None:
        """End the learner."""
        ray.kill(self.host)
        self.token.unlink(missing_ok=True)

    # ---------------------------------------------------------------- transport

    def _send(self, name: str, *arguments: Any) -> None:
        self.outbox.append((name, arguments))

    def _ask(self, name: str, *arguments: Any) -> Any:
        while True:
            try:
                return self._exchange(name, *arguments)
            except _Lost:
                self._replace()

    def _exchange(self, name: str, *arguments: Any) -> Any:
        """What this very learner answers."""
        calls, self.outbox, replies = [*self.outbox, (name, arguments)], [], None
        with suppress(RayActorError):
            replies = ray.get(self.host.exchange.remote(self.life, calls))
        if replies is None:
            raise _Lost
        for reply in replies:
            self._hear(*reply)
        return replies[-1][1]

    def _find(self, lost: tuple[str, int, str] | None) -> tuple[str, int, str]:
        """Wait for another process than the lost one; returns its machine, its number, and what tells it apart."""
        for attempt in range(10**9):
            try:
                if (life := ray.get(self.host.begin.remote(*self.beginning), timeout=5)) != lost:
                    return life
                ray.kill(self.host, no_restart=False)  # it was out of reach: what it has heard is not known
            except (ActorUnavailableError, GetTimeoutError):
                if attempt == 10:
                    tqdm.write("still no learner: no node is there that it could run on; the robots go on")
            except RayActorError as error:
                raise LearnerError(f"the learner cannot be started again: {error}") from None
            time.sleep(0.5)

    def _replace(self) -> None:
        """Bring a successor to where the learner was, or if that is lost as well, the next one."""
        since = time.monotonic()
        while True:
            self.life, self.outbox = self._find(self.life), []  # whole episodes: the successor reads them
            tqdm.write("the learner was lost; its successor is on {} (process {})".format(*self.life))
            with suppress(_Lost):
                self._restore()
                seconds, behind = time.monotonic() - since, self.info["steps_behind"]
                return tqdm.write(f"the learner is back after {seconds:.1f} s, {behind:,} steps behind")

    def _restore(self) -> None:
        """As --resume does: checkpoint, and the recorded episodes that the loop has handed over since.

        What had been learned since then is due once more.
        """
        step, progress = 0, {"episode": 0, "pretrained": 0}
        if self.first:
            step, progress = self._exchange(*self.first) or (step, progress)
        self._exchange("recover", progress["episode"], self.episode)
        for _ in range(progress["pretrained"], self.pretrained):
            self._exchange("pretrain")
        self.info = self.info | {"steps_behind": max(0, min(self.cycles, self.steps - step))}
        self._send("learn", self.steps, self.info["steps_behind"])

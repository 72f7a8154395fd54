"""train_hybrid.py on a Ray cluster: joining it, and the learner in a Ray actor. docs/cluster.md says how it is set up.

`RayLearner` stands where the loop has its learner. The learner is the one of scaling/processes.py; when it is killed,
Ray starts a successor, which comes back as a resumed run does: from the checkpoint and the episodes recorded since.

Needs `pip install -r requirements/ray.txt`.
"""

import io
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
from pytorch_serl.scaling.parameters import acting_modules, pack, unpack
from pytorch_serl.scaling.processes import EVALUATED, LearnerCalls, LearnerError, serve

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


# ---------------------------------------------------------------- the learner


class _Mailbox(queue.SimpleQueue):
    """A queue with the methods of a connection."""

    def poll(self, seconds: float) -> bool:
        return not self.empty()

    send, recv = queue.SimpleQueue.put, queue.SimpleQueue.get


class _Published:
    """The newest parameters, for whoever asks."""

    values, version = None, 0

    def write(self, modules: list[torch.nn.Module]) -> np.ndarray:
        self.values, self.version = pack(modules).cpu().numpy(), self.version + 1
        return self.values


class LearnerHost:
    """The Ray actor with the learner, which works in a thread of it; see `processes.serve`."""

    def __init__(self):
        self.life = socket.gethostname(), os.getpid(), uuid.uuid4().hex  # a successor has another one
        self.calls, self.replies, self.turn = _Mailbox(), _Mailbox(), threading.Lock()
        self.acting = _Published()

    def who(self) -> tuple[str, int, str]:
        return self.life

    def begin(self, work: dict[str, Any], token: str, threads: int) -> None:
        """Make the learner; `threads` is how many it may use, 0 for all but one. What goes wrong is a reply."""
        file = work["settings"]["save_dir"] / TOKEN
        if not file.is_file() or file.read_text() != token:
            text = f"the learner's node {socket.gethostname()} does not see the driver's {file.parent}: start the "
            text += "command on the learner's machine, or give a --save_dir that both of them share"
            self.replies.send(("error", (ValueError(text), "")))
            return
        if work["device"].type != "mps":
            work = work | {"device": torch.device("cuda" if ray.get_gpu_ids() else "cpu")}
        torch.set_num_threads(threads or max(1, (os.cpu_count() or 2) - 1))
        arguments = (self.calls, self.replies, self.acting, _Published(), work)
        threading.Thread(target=serve, args=arguments, daemon=True).start()

    def exchange(self, life: tuple[str, int, str], calls: list[tuple], until: str) -> list[tuple] | None:
        """Pass calls on to the learner; returns its replies up to the one of name `until`, or to an error.

        None, and passes on nothing, where the calls are meant for a predecessor.
        """
        if life != self.life:
            return None
        with self.turn:
            for call in calls:
                self.calls.send(call)
            replies = [self.replies.recv()]
            while replies[-1][0] not in (until, "error", "refused"):
                replies.append(self.replies.recv())
            return replies

    def newest(self, known: Any) -> tuple[Any, np.ndarray | None]:
        """Version and values of the newest parameters; no values where the version is `known`."""
        version = (self.life, self.acting.version)
        return version, None if version == known else self.acting.values


def start_host(use_gpu: bool) -> Any:
    """A Ray actor for the learner: on this node where that has what it needs, else elsewhere."""
    here = ray.get_runtime_context().get_node_id()
    gpus = int(use_gpu and ray.cluster_resources().get("GPU", 0) >= 1)
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    # not soft: Ray starts a successor elsewhere then, where the run's folder may not be
    place = NodeAffinitySchedulingStrategy(here, soft=False) if resources.get("GPU", 0) >= gpus else "DEFAULT"
    host = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=LEARNER_RESTARTS, max_concurrency=4)(LearnerHost)
    return host.options(scheduling_strategy=place).remote()


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
        self.agent, self.save_dir, self.info, self.outbox = agent, settings["save_dir"], {}, []
        self.steps = self.episode = 0  # transitions handed over, and whole episodes
        self.step = self.cycles = 0  # of the newest call of `learn`, and how many there were
        # what a successor begins with: the demos until there is a checkpoint
        self.demos: Demos | None = None
        self.saved, self.pretrained = -1, 0
        state, token = io.BytesIO(), uuid.uuid4().hex
        torch.save(agent.state_dict(), state)
        self.save_dir.mkdir(parents=True, exist_ok=True)
        self.token = self.save_dir / TOKEN
        self.token.write_text(token)
        work = {"state": state.getvalue(), "device": agent.device, "settings": settings}
        self.host = start_host(use_gpu)
        self.beginning, self.life = (ray.put(work), token, int(os.environ.get("OMP_NUM_THREADS", 0))), None
        self.life = self._find()
        self.host.begin.remote(*self.beginning)
        self._exchange("ready")
        print("learner: on {} (process {})".format(*self.life))

    def add(self, transition: dict[str, Any], to_demos: bool = False) -> None:
        super().add(transition, to_demos)
        self.steps += 1

    def end_episode(self, solved_alone: bool) -> None:
        super().end_episode(solved_alone)
        self.episode += 1
        self.catch_up(EVER)  # what is on its way arrives

    def learn(self, step: int) -> dict[str, float]:
        self.step, self.cycles = step, self.cycles + 1
        return super().learn(step)

    def averaged(self) -> SACAgent:
        policy = self.agent.averaged()  # a copy to load into
        unpack(torch.tensor(self._ask("averaged")), acting_modules(policy))
        return policy

    def store_demos(self, demos: Demos) -> None:
        super().store_demos(demos)
        self.demos = demos

    def save(self, step: int, progress: dict[str, Any]) -> Path:
        path = super().save(step, progress)
        self.saved, self.demos = step, None
        return path

    def load(self) -> tuple[int, dict[str, Any]]:
        self.saved, progress = super().load()
        self.steps, self.episode = self.saved, progress["episode"]
        return self.saved, progress

    def recover(self, first: int) -> tuple[int, int]:
        self.episode, steps = super().recover(first)
        self.steps += steps
        return self.episode, steps

    def refresh(self) -> None:
        """Nothing: the robots fetch the newest parameters, and the driver does not act by them."""

    def learned(self) -> int:
        """For how many environment steps the newest parameters have learned."""
        return self.steps - int(self.info.get("steps_behind", 0))

    def close(self) -> None:
        """End the learner."""
        ray.kill(self.host)
        for file in (self.token, self.save_dir / EVALUATED):
            file.unlink(missing_ok=True)

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
        """What this very learner answers; `ready` is what it says by itself."""
        calls, self.outbox = [*self.outbox, *([] if name == "ready" else [(name, arguments)])], []
        try:
            replies = ray.get(self.host.exchange.remote(self.life, calls, name))
        except RayActorError:
            replies = None
        if replies is None:
            raise _Lost
        for what, content in replies:
            self.raise_error(what, content)
            self.info = content if what == "info" else self.info
        return replies[-1][1]

    def _find(self) -> tuple[str, int, str]:
        """Wait for a process other than the one so far; returns its machine, its number, and what tells it apart."""
        for attempt in range(10**9):
            try:
                if (life := ray.get(self.host.who.remote(), timeout=5)) != self.life:
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
            with suppress(_Lost):
                self.life, self.outbox = self._find(), []  # whole episodes: the successor reads them
                tqdm.write(
                    "the learner was lost; its successor on {} (process {}) starts from ".format(*self.life)
                    + (f"the checkpoint of step {self.saved:,}" if self.saved >= 0 else "nothing")
                )
                self._restore()
                seconds, behind = time.monotonic() - since, self.info["steps_behind"]
                return tqdm.write(f"the learner is back after {seconds:.1f} s, {behind:,} steps behind")

    def _restore(self) -> None:
        """As --resume does: checkpoint, and the recorded episodes that the loop has handed over since.

        What had been learned since then is due once more.
        """
        self.host.begin.remote(*self.beginning)
        self._exchange("ready")
        step = pretrained = 0
        if self.saved >= 0:
            step, progress = self._exchange("load")
            pretrained = progress["pretrained"]
            self._exchange("recover", progress["episode"], self.episode)
        elif self.demos is not None:
            self._exchange("store_demos", self.demos)
        for _ in range(pretrained, self.pretrained):
            self._exchange("pretrain")
        due = max(0, min(self.cycles, self.step - step))
        self.info = self.info | {"steps_behind": due}
        if due:
            self._send("learn", self.step, due)

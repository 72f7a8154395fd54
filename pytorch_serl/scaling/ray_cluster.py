"""train_hybrid.py on a Ray cluster: joining it, and the learner in a Ray actor. docs/cluster.md says how it is set up.

`RayLearner` stands where the loop has its learner. The learner is the one of scaling/processes.py; when it is killed,
Ray starts a successor, to which its checkpoint and every call since are repeated.

Needs `pip install -r requirements/ray.txt`.
"""

import io
import os
import queue
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.demos import Demos
from pytorch_serl.scaling.processes import LearnerCalls, LearnerError, acting_modules, pack, serve, unpack

try:
    import ray
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ValueError("--ray_address needs Ray: python -m pip install -r requirements/ray.txt") from error

ROBOT = "robot"  # the resource that a node with a robot offers
POLL_SECONDS = 0.2
LEARNER_RESTARTS = 20
TOKEN = ".driver"  # file of a run by which the learner sees that it has the driver's folder
TOLD_AGAIN = ("add", "imitate", "learn", "note", "pretrain")  # calls that a learner's successor must get, too


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
        self.calls, self.replies, self.taken = _Mailbox(), _Mailbox(), 0
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

    def exchange(
        self, life: tuple[str, int, str], first: int, calls: list[tuple], seconds: float
    ) -> list[tuple] | None:
        """Take calls, the first of which is number `first`, and give what replies there are, waiting for one.

        Returns: None, and takes nothing, where the calls are meant for a predecessor.
        """
        if life != self.life:
            return None
        for call in calls[self.taken - first :]:  # not those that came in an exchange whose answer was lost
            self.calls.send(call)
        self.taken = first + len(calls)
        replies = []
        try:
            if seconds:
                replies.append(self.replies.get(timeout=seconds))
            while True:
                replies.append(self.replies.get_nowait())
        except queue.Empty:
            return replies

    def newest(self, known: Any) -> tuple[Any, np.ndarray | None]:
        """Version and values of the newest parameters; no values where the version is `known`."""
        version = (self.life, self.acting.version)
        return version, None if version == known else self.acting.values


class RayLearner(LearnerCalls):
    """The learner in a Ray actor; a killed one is started again and told what it does not know.

    It sits on the driver's node where that has what it needs, else elsewhere, with a GPU where the cluster has one.

    Args:
        agent: the learner starts as a copy of it.
        settings: the other arguments of `Learner`; `save_dir` is a folder of the driver and of the learner.
    """

    def __init__(self, agent: SACAgent, use_gpu: bool, **settings: Any):
        self.agent, self.info, self.pretrained, self.steps = agent, {}, 0, 0  # steps: transitions handed over
        self.outbox: list[tuple] = []
        self.answers: list[tuple] = []
        self.start: tuple | None = None  # the call that a successor begins with
        self.journal: list[tuple] = []  # the calls since, in TOLD_AGAIN
        self.saved, self.pending, self.candidate, self.sent = -1, None, None, 0
        state, token = io.BytesIO(), uuid.uuid4().hex
        torch.save(agent.state_dict(), state)
        settings["save_dir"].mkdir(parents=True, exist_ok=True)
        self.token = settings["save_dir"] / TOKEN
        self.token.write_text(token)
        work = {"state": state.getvalue(), "device": agent.device, "settings": settings}
        here = ray.get_runtime_context().get_node_id()
        gpus = int(use_gpu and ray.cluster_resources().get("GPU", 0) >= 1)
        resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
        # not soft: Ray starts a successor elsewhere then, where the run's folder may not be
        place = NodeAffinitySchedulingStrategy(here, soft=False) if resources.get("GPU", 0) >= gpus else "DEFAULT"
        host = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=LEARNER_RESTARTS, max_concurrency=4)(LearnerHost)
        self.host = host.options(scheduling_strategy=place).remote()
        self.beginning = ray.put(work), token, int(os.environ.get("OMP_NUM_THREADS", 0))
        self.life = self._find()
        self.host.begin.remote(*self.beginning)
        self._wait("ready")
        print("learner: on {} (process {})".format(*self.life))

    def averaged(self) -> SACAgent:
        self._send("averaged")
        self.candidate = self._wait("averaged")
        policy = self.agent.averaged()  # a copy to load into
        unpack(torch.tensor(self.candidate), acting_modules(policy))
        return policy

    def save_averaged(self, path: Path) -> None:
        super().save_averaged(path.absolute())
        self.candidate = None

    def store_demos(self, demos: Demos) -> None:
        super().store_demos(demos)
        self.start = ("store_demos", (demos,))

    def save(self, step: int, progress: dict[str, Any]) -> Path:
        path = super().save(step, progress)
        self.start, self.journal, self.saved = ("load", ()), [], step
        return path

    def load(self) -> tuple[int, dict[str, Any]]:
        step, progress = super().load()
        self.start, self.journal, self.saved = ("load", ()), [], step
        self.steps = step + progress.get("added_since", 0)
        return step, progress

    def refresh(self) -> None:
        """Nothing: the robots fetch the newest parameters, and the driver does not act by them."""

    def learned(self) -> int:
        """For how many environment steps the newest parameters have learned."""
        return self.steps - int(self.info.get("steps_behind", 0))

    def close(self) -> None:
        """End the learner."""
        ray.kill(self.host)
        self.token.unlink(missing_ok=True)

    # ---------------------------------------------------------------- transport

    def _send(self, name: str, *arguments: Any) -> None:
        self.outbox.append((name, arguments))
        self.steps += name == "add"
        if name == "note":  # an episode is complete
            self._exchange()

    def _read_replies(self) -> None:
        """Nothing: they come with each exchange."""

    def _wait(self, name: str) -> Any:
        self.pending = self.outbox[-1] if self.outbox else None
        while True:
            self._exchange(POLL_SECONDS)
            for answer in self.answers:
                if answer[0] == name:
                    self.answers, self.pending = [], None
                    return answer[1]

    def _exchange(self, seconds: float = 0.0) -> None:
        """Send what is to be sent and take what there is; a learner that is lost is brought up to date first."""
        try:
            replies = ray.get(self.host.exchange.remote(self.life, self.sent, self.outbox, seconds))
        except RayActorError:
            replies = None
        if replies is None:
            return self._revive()
        self.sent += len(self.outbox)
        self.journal += [call for call in self.outbox if call[0] in TOLD_AGAIN]
        self.outbox = []
        self._take(replies)

    def _take(self, replies: list[tuple]) -> None:
        for name, content in replies:
            self.raise_error(name, content)
            if name == "info":
                self.info = content
            else:
                self.answers.append((name, content))

    def _find(self) -> tuple[str, int, str]:
        """Wait for the learner's process; returns its machine, its number, and what tells it from any other."""
        for attempt in range(10**9):
            try:
                return ray.get(self.host.who.remote(), timeout=5)
            except (ActorUnavailableError, GetTimeoutError):
                if attempt == 10:
                    tqdm.write("still no learner: no node is there that it could run on; the robots go on")
                time.sleep(0.5)
            except RayActorError as error:
                raise LearnerError(f"the learner cannot be started again: {error}") from None

    def _revive(self) -> None:
        """Find the learner again; tell a successor what the checkpoint does not hold."""
        outbox, since = self.outbox, time.monotonic()
        while (life := self._find()) != self.life:
            self.life, self.sent, self.answers = life, 0, []
            tqdm.write(
                "the learner was lost; its successor on {} (process {}) starts from ".format(*life)
                + (f"the checkpoint of step {self.saved:,}" if self.saved >= 0 else "nothing")
            )
            if not self._repeat():
                continue
            if self.pending is not None and self.pending[0] not in TOLD_AGAIN:
                if not any(call is self.pending for call in outbox):
                    outbox = [*outbox, self.pending]
            behind = sum(name == "learn" for name, _ in self.journal)
            self.info = self.info | {"steps_behind": behind}
            tqdm.write(f"the learner is back after {time.monotonic() - since:.1f} s, {behind:,} steps behind")
        self.outbox = outbox

    def _repeat(self) -> bool:
        """Bring a successor to where its predecessor was; False when it is lost as well."""
        self.host.begin.remote(*self.beginning)
        if self.start is None:
            return True
        if (answer := self._ask(*self.start)) is None:
            return False
        saving = self.pending[1][0] if self.pending and self.pending[0] == "save" else None
        if answer[0] == "load" and answer[1][0] == saving != self.saved:  # its last save came before its last answer
            self.journal = []
        if self.candidate is not None:
            self.journal.append(("adopt", (self.candidate,)))
        done = self._ask("full_size_gb", (), before=self.journal)  # its answer says that all the others were taken
        self.journal = [call for call in self.journal if call[0] != "adopt"]
        pending = self.pending[0] if self.pending else None
        self.answers = [answer for answer in self.answers if answer[0] == pending and pending in TOLD_AGAIN][-1:]
        return done is not None

    def _ask(self, name: str, arguments: tuple, before: list[tuple] = ()) -> tuple | None:
        """The answer of a successor; None when it is lost as well."""
        calls = [*before, (name, arguments)]
        while True:
            try:
                replies = ray.get(self.host.exchange.remote(self.life, self.sent, calls, POLL_SECONDS))
            except RayActorError:
                return None
            if replies is None:
                return None
            self.sent, calls = self.sent + len(calls), []
            self._take(replies)
            for answer in self.answers:
                if answer[0] == name:
                    return answer

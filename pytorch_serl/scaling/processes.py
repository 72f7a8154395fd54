"""The learner in a process of its own, so that no gradient step delays an action.

`RemoteLearner` has the methods of `Learner`, and the loop of train_hybrid.py is the same for both. Transitions go to
the other process through a queue that never blocks; what the actor needs of the trained parameters comes back through
shared memory; the frozen backbone crosses once, at the start.
"""

import atexit
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.demos import Demos
from pytorch_serl.scaling.parameters import SharedParameters, acting_modules, from_bytes, pack, to_bytes
from pytorch_serl.training import build
from pytorch_serl.training.learner import Learner
from pytorch_serl.training.run import LEARNER_LOCK, LOCK_SECONDS, seed_all
from pytorch_serl.utils.files import RunInUse, WriteError, wait_for_lock
from pytorch_serl.utils.memory import keep_freed_memory
from pytorch_serl.utils.signals import STOP_SIGNALS, start_deaf, uninterrupted

PUBLISH_SECONDS = 0.5  # between two versions of the parameters for the actor
STOP_SECONDS = 20.0  # for a learner to end
TOLD = ("add", "end_episode", "learn")  # calls without an answer
READ = ("store_demos", "full_size_gb", "load", "recover")  # calls that read what the user gave


class LearnerError(RuntimeError):
    """The learner's process ended; the message has its traceback."""


class LearnerCalls:
    """The methods of `Learner`, each a message to a learner elsewhere; how it gets there is the child's.

    A child has `_send`; `_ask`, which also waits for the answer; and `close`.

    Args:
        agent: the learner starts as a copy of it.
        settings: the other arguments of `Learner`.
    """

    def __init__(self, agent: SACAgent, settings: dict[str, Any]):
        self.agent, self.info, self.pretrained = agent, {}, 0
        threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 0
        state = to_bytes(agent.state_dict())
        self.work = {"state": state, "device": agent.device, "threads": threads, "settings": settings}

    def add(self, transition: dict[str, Any], to_demos: bool = False) -> None:
        self._send("add", transition, to_demos)

    def end_episode(self, solved_alone: bool) -> None:
        self._send("end_episode", solved_alone)

    def learn(self, step: int) -> dict[str, float]:
        """Allow the learner what this environment step allows; returns the figures of its newest update, if any."""
        self._send("learn", step)
        self.refresh()
        return self.info

    def refresh(self) -> None:
        """Take what the learner has to say, for an agent that acts here."""

    def store_demos(self, demos: Demos) -> None:
        self._ask("store_demos", demos)

    def full_size_gb(self) -> tuple[float, float]:
        return self._ask("full_size_gb")

    def pretrain(self) -> dict[str, float]:
        info = self._ask("pretrain")
        self.pretrained += 1
        return info

    def catch_up(self, behind: int) -> None:
        """Wait until no more than `behind` environment steps are left to learn from."""
        self._ask("catch_up", behind)

    def averaged(self) -> SACAgent:
        self.candidate = self.agent.averaged()  # a copy to load into
        self.candidate.load_state_dict(from_bytes(self._ask("averaged"), self.agent.device))
        self.refresh()  # after the pretraining, too: `learn` is not called before --training_starts
        return self.candidate

    def save_averaged(self, path: Path) -> None:
        self.candidate.save_policy(path)

    def save(self, step: int, progress: dict[str, Any]) -> Path:
        return self._ask("save", step, progress)

    def load(self) -> tuple[int, dict[str, Any]]:
        step, progress = self._ask("load")
        self.pretrained = progress["pretrained"]
        self.refresh()
        return step, progress

    def recover(self, first: int) -> tuple[int, int]:
        return self._ask("recover", first)

    def _hear(self, name: str, content: Any) -> None:
        """Keep the figures that a reply has; an error, which ends the learner, is raised."""
        if name == "error":
            self.close()
            raise content
        if name == "info":
            self.info = content


class RemoteLearner(LearnerCalls):
    """Starts a process with a `Learner` in it and passes every call on; `agent`, which acts here, is kept up to date.

    Its methods raise LearnerError when the learner failed or was killed, and its WriteError or FloatingPointError.
    """

    def __init__(self, agent: SACAgent, **settings: Any):
        super().__init__(agent, settings)
        context = mp.get_context("spawn")
        self.acting, self.version = SharedParameters(pack(acting_modules(agent)).numel(), context), 0
        self.connection, theirs = context.Pipe()
        self.calls = queue.SimpleQueue()
        self.process = context.Process(target=_serve, args=(theirs, self.acting, self.work), daemon=True)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # the other cores are the learner's
        start_deaf(self.process)
        theirs.close()  # so that each side notices when the other one is gone
        del self.work
        threading.Thread(target=self._send_calls, daemon=True).start()
        atexit.register(self.close)

    def refresh(self) -> None:
        """Bring the acting agent up to date with the newest published parameters, and `info` with the figures."""
        self._receive()
        self.version = self.acting.read(acting_modules(self.agent), self.version)

    def close(self) -> None:
        """End the learner's process."""
        atexit.unregister(self.close)
        self._send("stop")
        self.process.join(STOP_SECONDS)
        self.process.kill()

    def _send(self, name: str, *arguments: Any) -> None:
        self.calls.put((name, arguments))

    def _send_calls(self) -> None:
        """Runs in a thread: a full pipe makes this thread wait, not the actor."""
        try:
            while True:
                self.connection.send(self.calls.get())
        except OSError:  # the learner is gone; who waits for it says so
            pass
        except BaseException:  # what cannot be sent: who waits for its answer hears that nobody will give one
            self.process.kill()
            raise

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._send(name, *arguments)
        return self._receive(until=name)

    def _receive(self, until: str | None = None) -> Any:
        """Take what the learner has sent; with `until`, wait for the answer to this call and return it."""
        try:
            while self.connection.poll(None if until else 0):  # Ctrl-C comes here, not amid a reply
                with uninterrupted():
                    name, content = self.connection.recv()
                self._hear(name, content)
                if name == until:
                    return content
        except (EOFError, ConnectionError):
            self.process.join(STOP_SECONDS)
            raise LearnerError(f"the learner's process ended with exit code {self.process.exitcode}") from None


# ---------------------------------------------------------------- the learner's process


def _serve(connection: Any, acting: SharedParameters, work: dict[str, Any]) -> None:
    """The main function of the learner's process: serve until the actor says stop, or is gone."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C goes to every process of the terminal: the actor decides
    serve(connection, connection, acting, **work)


def serve(
    calls: Any, replies: Any, acting: Any, state: bytes, device: torch.device, threads: int, settings: dict[str, Any]
) -> None:
    """Make a learner and serve its calls until one says stop; an error that ends it is its last reply.

    Args:
        calls, replies: with the methods of a connection.
        acting: takes parameters to publish by `write(modules)`.
        state: of the agent.
        threads: how many the learner may use, 0 for all but one, which is the actor's.
        settings: the other arguments of `Learner`.
    """
    keep_freed_memory()
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 2) - 1))
    try:
        settings["save_dir"].mkdir(parents=True, exist_ok=True)
        with open(settings["save_dir"] / LEARNER_LOCK, "w") as file:
            wait_for_lock(file, LOCK_SECONDS)  # one whose actor was killed may still be saving
            seed_all(settings["seed"])
            agent = build.restore_agent(from_bytes(state, device), device, "the actor's agent")
            _Service(replies, acting, agent, settings).run(calls)
    except (EOFError, ConnectionError):  # the actor was killed; what it recorded is on disk for --resume
        pass
    except (WriteError, FloatingPointError, RunInUse) as error:
        replies.send(("error", error))
    except Exception:
        replies.send(("error", LearnerError(f"the learner failed:\n{traceback.format_exc()}")))


class _Service(Learner):
    """A `Learner` that does what it is called to do, and learns when there is no call."""

    def __init__(self, replies: Any, acting: Any, agent: SACAgent, settings: dict[str, Any]):
        super().__init__(agent, **settings)
        self.replies, self.acting = replies, acting
        self.due, self.step, self.heard = 0, 0, False  # cycles that the actor's steps allow; the newest step
        self.cycles, self.published = 0, time.monotonic()

    def run(self, calls: Any) -> None:
        """Take calls as they come, and learn in between."""
        while True:
            if self.due and not calls.poll(0):
                self.cycle()
                continue
            name, arguments = calls.recv()
            if name == "stop":
                return
            try:
                answer = getattr(self, name)(*arguments)
            except (ValueError, OSError) as error:
                if name not in READ:
                    raise
                return self.replies.send(("error", error))  # the user's mistake
            if name not in TOLD:
                self.replies.send((name, answer))

    def cycle(self) -> None:
        """Learn what one environment step allows; from time to time publish what has come of it."""
        info = super().learn(self.step)
        self.due -= 1
        self.cycles += 1
        seconds = time.monotonic() - self.published
        if self.heard and seconds > PUBLISH_SECONDS:
            self.heard = False  # an actor that evaluates reads no replies: do not fill the pipe
            updates = self.cycles * self.schedule.cta_ratio * self.schedule.cycles_per_step
            figures = {"updates_per_second": updates / seconds, "steps_behind": self.due}
            self.publish()
            self.replies.send(("info", _floats(info) | figures))

    def publish(self) -> None:
        self.acting.write(acting_modules(self.agent))
        self.cycles, self.published = 0, time.monotonic()

    # ---------------------------------------------------------------- calls that differ from the learner's own

    def learn(self, step: int, cycles: int = 1) -> None:
        self.due, self.step, self.heard = self.due + cycles, step, True

    def pretrain(self) -> dict[str, float]:
        return _floats(super().pretrain())

    def catch_up(self, behind: int) -> None:
        while self.due > behind:
            self.cycle()

    def averaged(self) -> bytes:
        self.publish()
        return to_bytes(self.agent.averaged().policy_state_dict())

    def load(self) -> tuple[int, dict[str, Any]]:
        answer = super().load()
        self.publish()
        return answer


def _floats(info: dict[str, torch.Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in info.items()}

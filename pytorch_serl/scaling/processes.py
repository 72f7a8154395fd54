"""The learner in a process of its own, so that no gradient step delays an action.

`RemoteLearner` has the methods of `Learner`, and the loop of train_hybrid.py is the same for both. Transitions go to
the other process through a queue that never blocks; what the actor needs of the trained parameters comes back through
shared memory; the frozen backbone crosses once, at the start.
"""

import atexit
import io
import multiprocessing as mp
import os
import queue
import signal
import threading
import time
import traceback
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.demos import Demos
from pytorch_serl.scaling.parameters import SharedParameters, acting_modules, pack
from pytorch_serl.training import build
from pytorch_serl.training.learner import Learner
from pytorch_serl.training.run import LEARNER_LOCK as LOCK
from pytorch_serl.training.run import LOCK_SECONDS, seed_all
from pytorch_serl.utils.files import RunInUse, WriteError, wait_for_lock
from pytorch_serl.utils.memory import keep_freed_memory
from pytorch_serl.utils.signals import STOP_SIGNALS

PUBLISH_SECONDS = 0.5  # between two versions of the parameters for the actor
STOP_SECONDS = 20.0  # for a learner to end
EVALUATED = ".evaluated.tmp"  # the policy that `averaged` returned last, until it is known whether it is the best


class LearnerError(RuntimeError):
    """The learner's process ended; the message has its traceback."""


class LearnerCalls:
    """The methods of `Learner`, each a message to a learner elsewhere; how it gets there is the child's.

    A child has `_send`, `_ask`, `refresh`, and `save_dir`, `info` and `pretrained` as `RemoteLearner` has them.
    """

    # ---------------------------------------------------------------- calls that do not wait

    def add(self, transition: dict[str, Any], to_demos: bool = False) -> None:
        self._send("add", transition, to_demos)

    def end_episode(self, solved_alone: bool) -> None:
        self._send("end_episode", solved_alone)

    def learn(self, step: int) -> dict[str, float]:
        """Allow the learner what this environment step allows; returns the figures of its newest update, if any."""
        self._send("learn", step)
        self.refresh()
        return self.info

    # ---------------------------------------------------------------- calls that wait for the answer

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

    def save_averaged(self, path: Path) -> None:
        """Keep what `averaged` returned last: the learner has put it on disk, where it outlives the learner."""
        os.replace(self.save_dir / EVALUATED, path)

    def save(self, step: int, progress: dict[str, Any]) -> Path:
        return self._ask("save", step, progress)

    def load(self) -> tuple[int, dict[str, Any]]:
        step, progress = self._ask("load")
        self.pretrained = progress["pretrained"]
        self.refresh()
        return step, progress

    def recover(self, first: int) -> tuple[int, int]:
        return self._ask("recover", first)

    def raise_error(self, name: str, content: Any) -> None:
        """Raise the error that a reply reports; what the learner refuses is the user's mistake, and it ends."""
        if name == "refused":
            self.close()
            raise content
        if name == "error":
            error, text = content
            raise (error or LearnerError(f"the learner failed:\n{text}"))


class RemoteLearner(LearnerCalls):
    """Starts a process with a `Learner` in it and passes every call on.

    Args:
        agent: acts in this process; `refresh` brings it up to date. The learner starts as a copy of it.
        settings: the other arguments of `Learner`.
    Its methods raise LearnerError when the learner failed or was killed, and its WriteError or FloatingPointError.
    """

    def __init__(self, agent: SACAgent, **settings: Any):
        context = mp.get_context("spawn")
        start_tracker()
        self.agent, self.save_dir = agent, settings["save_dir"]
        count = pack(acting_modules(agent)).numel()
        self.acting, self.averages = SharedParameters(count, context), SharedParameters(count, context)
        self.version, self.info, self.pretrained = 0, {}, 0
        self.replies, their_replies = context.Pipe(duplex=False)
        their_calls, self.connection = context.Pipe(duplex=False)
        self.calls = queue.SimpleQueue()
        state = io.BytesIO()
        torch.save(agent.state_dict(), state)
        work = {"state": state.getvalue(), "device": agent.device, "settings": settings}
        arguments = (their_calls, their_replies, self.acting, self.averages, work)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # the other cores are the learner's
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # they are not for a learner, see `_serve`
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        their_calls.close(), their_replies.close()  # so that each side notices when the other one is gone
        threading.Thread(target=self._send_calls, daemon=True).start()
        atexit.register(self.close)
        self._wait("ready")

    def refresh(self) -> None:
        """Bring the acting agent up to date with the newest published parameters, and `info` with the figures."""
        self._read_replies()
        self.version = self.acting.read(acting_modules(self.agent), self.version)

    def averaged(self) -> SACAgent:
        self._ask("averaged")
        policy = self.agent.averaged()  # a copy to load into
        self.averages.read(acting_modules(policy), -1)
        return policy

    def close(self) -> None:
        """End the learner's process."""
        atexit.unregister(self.close)
        if self.process.is_alive():
            self._send("stop")
            self.process.join(STOP_SECONDS)
        if self.process.is_alive():
            self.process.kill()
        (self.save_dir / EVALUATED).unlink(missing_ok=True)

    # ---------------------------------------------------------------- transport

    def _send(self, name: str, *arguments: Any) -> None:
        self.calls.put((name, arguments))

    def _send_calls(self) -> None:
        """Runs in a thread: a full pipe makes this thread wait, not the actor."""
        try:
            while True:
                self.connection.send(self.calls.get())
        except OSError:  # the learner is gone; who waits for it says so
            pass

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._send(name, *arguments)
        return self._wait(name)

    def _wait(self, name: str) -> Any:
        while True:
            self.replies.poll(0.5)
            answer = self._read_replies(until=name)
            if answer is not None:
                return answer[0]

    def _read_replies(self, until: str | None = None) -> tuple[Any] | None:
        """Take what the learner has sent; an error that it reports is raised here."""
        try:
            while self.replies.poll(0):
                name, content = self.replies.recv()
                self.raise_error(name, content)
                if name == "info":
                    self.info = content
                elif name == until:
                    return (content,)
        except EOFError:
            self.process.join(STOP_SECONDS)
            raise LearnerError(f"the learner's process ended with exit code {self.process.exitcode}") from None
        return None


def start_tracker() -> None:
    """Start multiprocessing's resource tracker, if it is not running, so that SIGHUP does not end it.

    It ignores the other signals by itself; and its start would let them through where they are blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------- the learner's process


def _serve(calls, replies, acting, averages, work) -> None:
    """The main function of the learner's process: serve until the actor says stop, or is gone."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C goes to every process of the terminal: the actor decides
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))  # one core is the actor's
    serve(calls, replies, acting, averages, work)


def serve(calls: Any, replies: Any, acting: Any, averages: Any, work: dict[str, Any]) -> None:
    """Make a learner and serve its calls until one says stop; an error that ends it is its last reply.

    Args:
        calls, replies: with the methods of a connection.
        acting, averages: take parameters to publish by `write(modules)`.
        work: `state` of the agent as bytes, `device`, and `settings`, the other arguments of `Learner`.
    """
    keep_freed_memory()
    save_dir = Path(work["settings"]["save_dir"])
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        with open(save_dir / LOCK, "w") as file:
            _lock(file)
            _Service(replies, acting, averages, work).run(calls)
    except (WriteError, FloatingPointError, RunInUse) as error:
        replies.send(("error", (error, "")))
    except Exception:
        replies.send(("error", (None, traceback.format_exc())))


def _lock(file) -> None:
    """Wait until no learner uses the run; one whose actor was killed may still be saving."""
    wait_for_lock(file, LOCK_SECONDS)


ASKED = ("store_demos", "full_size_gb", "load", "recover")  # methods of `Learner` that read what the user gave


class _Service:
    """A `Learner` that takes calls from a queue and learns when there is none."""

    def __init__(self, replies, acting, averages, work):
        self.replies, self.acting, self.averages = replies, acting, averages
        seed_all(work["settings"]["seed"])
        content = torch.load(io.BytesIO(work["state"]), work["device"], weights_only=True)
        self.agent = build.restore_agent(content, work["device"], "the actor's agent")
        self.learner = Learner(self.agent, **work["settings"])
        self.due, self.step, self.asked = 0, 0, False  # due: cycles that the actor's steps allow
        self.cycles, self.since, self.published = 0, time.monotonic(), 0.0
        self.reply("ready", True)

    def run(self, calls):
        """Take calls as they come, and learn when there are none."""
        try:
            while True:
                if self.due and not calls.poll(0):
                    self.learn()
                    continue
                name, arguments = calls.recv()
                if name == "stop":
                    return
                if name in ASKED:
                    self.ask(name, *arguments)
                else:
                    getattr(self, f"on_{name}")(*arguments)
        except (EOFError, BrokenPipeError):  # the actor was killed; what it recorded is on disk for --resume
            return

    def learn(self):
        info = self.learner.learn(self.step)
        self.due -= 1
        self.cycles += 1
        if self.asked and time.monotonic() - self.published > PUBLISH_SECONDS:
            self.asked = False  # an actor that evaluates reads no replies: do not fill the pipe
            seconds = time.monotonic() - self.since
            figures = {key: float(value) for key, value in info.items()}
            self.publish()
            updates = self.cycles * self.learner.schedule.cta_ratio * self.learner.schedule.cycles_per_step
            self.reply("info", figures | {"updates_per_second": updates / seconds, "steps_behind": self.due})
            self.cycles, self.since = 0, time.monotonic()

    def publish(self):
        self.acting.write(acting_modules(self.agent))
        self.published = time.monotonic()

    def reply(self, name, content):
        self.replies.send((name, content))

    # ---------------------------------------------------------------- the calls

    def on_add(self, transition, to_demos):
        self.learner.add(transition, to_demos)

    def on_end_episode(self, solved_alone):
        self.learner.end_episode(solved_alone)

    def on_learn(self, step, cycles=1):
        self.due, self.step, self.asked = self.due + cycles, step, True

    def on_pretrain(self):
        info = self.learner.pretrain()
        self.reply("pretrain", {key: float(value) for key, value in info.items()})

    def on_catch_up(self, behind):
        while self.due > behind:
            self.learn()
        self.reply("catch_up", True)

    def on_averaged(self):
        published = self.averages.write(acting_modules(self.learner.averaged()))
        self.learner.save_averaged(self.learner.save_dir / EVALUATED)
        self.publish()
        self.reply("averaged", published)

    def ask(self, name, *arguments):
        """Call the learner's own method; what it refuses is the user's mistake, and goes back as it is."""
        try:
            answer = getattr(self.learner, name)(*arguments)
            self.publish()
            self.reply(name, answer)
        except (ValueError, OSError) as error:
            self.reply("refused", error)

    def on_save(self, step, progress):
        self.reply("save", self.learner.save(step, progress))

"""What the three training scripts share: run directory, settings, random states, metrics, curves, user errors."""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytorch_serl.data.episode_files import FOLDER, SUFFIX, episode_files
from pytorch_serl.utils.files import WriteError, atomic_write, flock, wait_for_lock, write_error
from pytorch_serl.utils.files import save_checkpoint as save_checkpoint  # for those who look for it here
from pytorch_serl.utils.memory import keep_freed_memory
from pytorch_serl.utils.output import print_anything
from pytorch_serl.utils.signals import catch_stops
from pytorch_serl.utils.signals import uninterrupted as uninterrupted

RUN_LOCK, LEARNER_LOCK = ".run.lock", ".learner.lock"
LOCK_SECONDS = 10.0  # for the learner of a killed run to save
# what a run writes, each name once
SETTINGS, METRICS, CURVE = "settings.json", "metrics.jsonl", "learning_curve.png"
LAST, BEST, NAN_BATCH = "last.pt", "best.pt", "nan_batch.pt"
BUFFER_PART = "buffer_{}_{}.pt"  # of which buffer, from which transition on
CALLED_SUCCESS = "called_success"  # folder of pictures
SPOOL = "robots"  # folder, on every robot's machine: episodes that the driver of a cluster does not have yet
RUN_FILES = (  # patterns
    *(SETTINGS, METRICS, CURVE, LAST, BEST, NAN_BATCH),
    BUFFER_PART.format("*", "*"),
    "events.out.tfevents.*",
    f"{FOLDER}/[0-9]*{SUFFIX}",
    f"{CALLED_SUCCESS}/*.png",
    f"{CALLED_SUCCESS}/[0-9]*_*.pkl",
    f"{SPOOL}/*/*/{FOLDER}/*{SUFFIX}",
)


@contextmanager
def user_errors(kinds: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Turn errors in the user's input into one line on stderr and exit code 2; use `with user_errors():`.

    Put it around reading and checking. Around the training loop, where other exceptions are defects and keep their
    traceback, give `(ContractError,)`. ValueError is what the checks of this project raise; OSError is a missing or
    unreadable file.
    """
    try:
        yield
    except kinds as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`: Ctrl-C, SIGTERM or SIGHUP where there is nothing to save ends it in one line and exit code
    130, a full disk in one line and 2."""
    print_anything()
    keep_freed_memory()
    catch_stops()
    try:
        with user_errors((WriteError,)):
            main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


class Parser(argparse.ArgumentParser):
    """argparse whose errors look like every other error of this project; the help shows defaults."""

    def __init__(self, description: str):
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str):
        self.exit(2, f"error: {message}; {self.prog} --help lists every option\n")

    def require(self, args: argparse.Namespace, limits: dict[str, tuple[bool, str]]) -> None:
        """Refuse the first number that cannot be meant; `limits`: option -> (whether it is fine, what is wanted)."""
        for name, (fine, wanted) in limits.items():
            if not fine:
                self.error(f"--{name} is {getattr(args, name)}; wanted {wanted}")


# ---------------------------------------------------------------- random numbers


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The states of python's, numpy's and torch's global generators, in types that `weights_only=True` loads."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue the random numbers where `rng_state()` was taken; devices that are not there now are left out."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    if torch.backends.mps.is_available() and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())


# ---------------------------------------------------------------- run directory


def check_run_dir(path: str | os.PathLike, resume: bool, overwrite: bool, own_files: Iterable[str] = ()) -> None:
    """Refuse a directory that cannot take this run; changes nothing.

    Args:
        own_files: patterns of what the script writes beside `RUN_FILES`.
    Raises ValueError: resume without a `last.pt`, a directory with a run in it and neither resume nor overwrite, and
    one with a recording, whose episodes overwrite would delete.
    """
    path = Path(path)
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other; give one of them")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; wanted a directory to write the run to")
    if episode_files(path) and not holds_run(path):
        raise ValueError(f"{path} holds a recording of record_demos.py ({FOLDER}/) and no run; name another directory")
    found = _run_files(path, own_files)
    has_checkpoint = (path / LAST).is_file()
    if resume and not has_checkpoint and not found:
        raise ValueError(f"{path / LAST}: no checkpoint to resume from; leave --resume out to start a new run")
    names = ", ".join(file.name for file in found[:5]) + (", ..." if len(found) > 5 else "")
    if found and not has_checkpoint and not overwrite:
        raise ValueError(
            f"{path} holds files of a run ({names}) and no {LAST} to go on from: it was stopped before its first "
            "checkpoint, or was evaluated alone; start anew with --overwrite, or name another directory"
        )
    if found and not resume and not overwrite:
        raise ValueError(
            f"{path} holds a run already ({names}); continue it with --resume, replace it with --overwrite, "
            "or name another directory"
        )


def prepare_run_dir(path: str | os.PathLike, resume: bool, overwrite: bool, own_files: Iterable[str] = ()) -> Path:
    """Check as `check_run_dir`, make the directory, and with `overwrite` delete the old run's files, no others.

    Call it when all other input has been checked, so that a typo elsewhere does not cost the old run.
    """
    check_run_dir(path, resume, overwrite, own_files)
    path = Path(path)
    make_writable_dir(path)
    if overwrite:
        for file in _run_files(path, own_files):
            file.unlink()
    with tempfile.TemporaryFile(dir=path) as file:
        alone = flock(file) is not None  # else another run may be in here, see `hold_run_dir`
    for file in path.glob(".*.tmp"):  # what was being written when a run was killed
        if alone or not is_being_written(file):
            file.unlink(missing_ok=True)
    return path


def is_being_written(temporary: Path) -> bool:
    """Whether another living process of this machine is named in the file's name (see `atomic_write`)."""
    process = temporary.name.split(".")[-2]
    if not process.isdigit() or int(process) in (0, os.getpid()):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is somebody else's
        return True
    return True


def holds_run(path: str | os.PathLike) -> bool:
    """Whether a training script has written to the directory; `record_demos.py` leaves none of these files."""
    return any((Path(path) / name).is_file() for name in (SETTINGS, METRICS, LAST))


@contextmanager
def hold_run_dir(path: str | os.PathLike | None) -> Iterator[None]:
    """Keep other runs out of the directory, which is made, while the block runs; ends in one line where one is in it.

    Every script that writes to a directory does so inside. The learner of a run whose script was killed may still be
    saving: it is waited for. An empty directory that was made here goes at the end. None holds nothing.
    """
    if path is None or (Path(path).exists() and not Path(path).is_dir()):  # a file: `check_run_dir` says so
        yield
        return
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with ExitStack() as files:
        with user_errors():
            path.mkdir(parents=True, exist_ok=True)
            _take_lock(path / RUN_LOCK, files)
            if (path / LEARNER_LOCK).exists():
                with open(path / LEARNER_LOCK, "w") as learner:
                    wait_for_lock(learner, LOCK_SECONDS)
        try:
            yield
        finally:
            (path / RUN_LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()


def _take_lock(path: Path, files: ExitStack) -> None:
    """Lock the file until `files` closes it. Raises RunInUse."""
    while True:
        file = files.enter_context(open(path, "w"))
        wait_for_lock(file, 0)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return  # else it is the one of a run that ended meanwhile, and took its file along


def make_writable_dir(path: Path) -> None:
    """Make the directory; raises OSError now, not hours later, where nothing can be written to it."""
    path.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path).close()


def _run_files(path: Path, own_files: Iterable[str]) -> list[Path]:
    return sorted({file for pattern in (*RUN_FILES, *own_files) for file in path.glob(pattern) if file.is_file()})


def save_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Write `content` as indented JSON, atomically; paths and devices become text."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, default=str) + "\n").encode())


def print_settings(settings: dict[str, Any]) -> None:
    """The resolved settings, one a line."""
    print("settings:\n" + "\n".join(f"  {name:24} {value}" for name, value in settings.items()))


def save_settings(path: str | os.PathLike, settings: dict[str, Any]) -> None:
    """Save the resolved settings as `settings.json` in the run directory `path`.

    A resumed run has the backbone that it began with, whatever --backbone says, and so do its settings.
    """
    file = Path(path) / SETTINGS
    if settings["resume"] and file.is_file():
        with suppress(ValueError, LookupError, TypeError):  # damaged
            settings = settings | {"backbone": json.loads(file.read_text())["backbone"]}
    save_json(file, settings)


# ---------------------------------------------------------------- metrics


class Clock:
    """Minutes on the wall since a run began, its resumptions added and the pauses between them not.

    Made when the script starts, so that reading and encoding demos, pretraining and evaluations are in it.
    `before`: what the checkpoint says that is gone on from; later minutes of a killed run, whose steps are lost, too,
    do not count.
    """

    def __init__(self):
        self.started, self.before = time.monotonic(), 0.0

    def minutes(self) -> float:
        return self.before + (time.monotonic() - self.started) / 60


class MetricLogger:
    """Scalars to `metrics.jsonl` (one line per call), to TensorBoard where it is installed, and kept for the curves.

    Args:
        path: the run directory.
        resume_step: continue an old log; lines after this step, which a killed run wrote past its checkpoint, go.
    Raises ValueError for an old log that is damaged.
    """

    def __init__(self, path: str | os.PathLike, resume_step: int | None = None):
        self.rows: list[dict[str, float]] = []
        self.file = Path(path) / METRICS
        if resume_step is not None and self.file.exists():
            complete = self.file.read_text().split("\n")[:-1]  # a killed run may leave half a line
            try:
                self.rows = [row for row in map(json.loads, complete) if row["step"] <= resume_step]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.file}: damaged ({error}); move it away, and --resume starts a new one"
                ) from None
        with atomic_write(self.file) as file:
            file.write("".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self.writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            text = f"tensorboard is not installed: metrics go to {self.file} only (pip install tensorboard)"
            warnings.warn(text, stacklevel=2)
        else:
            try:
                self.writer = SummaryWriter(str(path), purge_step=None if resume_step is None else resume_step + 1)
            except UnicodeError:  # it takes no folder whose name is no text
                text = f"tensorboard cannot write to {ascii(str(path))}: metrics go to {METRICS} only"
                warnings.warn(text, stacklevel=2)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Record scalars (numbers or 0-dimensional tensors) at `step`. Raises WriteError."""
        row = {"step": int(step)} | {name: float(value) for name, value in values.items()}
        self.rows.append(row)
        try:
            with open(self.file, "a") as file:
                file.write(json.dumps(row) + "\n")
            for name, value in row.items() if self.writer is not None else ():
                if name != "step":
                    self.writer.add_scalar(name, value, step)
        except OSError as error:
            raise write_error(self.file, error) from error

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        rows = [row for row in self.rows if name in row]
        return [row["step"] for row in rows], [row[name] for row in rows]

    def curves(self, panels: dict[str, Iterable[str]]) -> dict[str, dict[str, tuple[list, list]]]:
        """What `learning_curve` takes: y label -> metric -> its series; what has no values is left out."""
        lines = {ylabel: {n: self.series(n) for n in names if self.series(n)[0]} for ylabel, names in panels.items()}
        return {ylabel: series for ylabel, series in lines.items() if series}

    def close(self) -> None:
        if self.writer is not None:
            with suppress(OSError):  # a full disk has ended the run already, and is what the user is to hear of
                self.writer.close()


def learning_curve(
    path: str | os.PathLike, panels: dict[str, dict[str, tuple[list, list]]], xlabel: str = "step"
) -> None:
    """Draw `panels` (y label -> {line name: (xs, ys)}) below each other into a PNG; warns without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warnings.warn(f"matplotlib is not installed: no {path} (pip install matplotlib)", stacklevel=2)
        return
    height = 2.6 * len(panels)
    figure = Figure(figsize=(7, height))  # fixed margins: a layout that is solved for takes as long as the drawing
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.13, right=0.98, bottom=0.5 / height, top=1 - 0.15 / height, hspace=0.08)
    column = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for axes, (ylabel, lines) in zip(column, panels.items(), strict=True):
        for name, (xs, ys) in lines.items():
            axes.plot(xs, ys, label=name, marker="." if len(xs) < 30 else None)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        if any(len(xs) for xs, _ in lines.values()):
            axes.legend()
    axes.set_xlabel(xlabel)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)

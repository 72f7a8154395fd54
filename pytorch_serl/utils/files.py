"""Files that are either the old one or the new one, never half of either."""

import io
import numbers
import os
import pickle
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch

from pytorch_serl.utils.file_kinds import kind_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

COMPILED = "_orig_mod."  # what torch.compile puts into a module's names
KEPT = (type(None), torch.Tensor, torch.device, torch.dtype, torch.Size)  # `torch.load` admits them as they are


class WriteError(OSError):
    """The disk did not take what was to be written; the file that was there before is whole."""


class RunInUse(ValueError):
    """Another process writes to the run's directory."""


class _WatchedFile(io.FileIO):
    """Remembers an error of the disk: what writes into the file may report it as something else, as torch.save does."""

    error: OSError | None = None

    def write(self, data):
        return self._watched(super().write, data)

    def sync(self):
        return self._watched(os.fsync, self.fileno())

    def _watched(self, operation, *args):
        try:
            return operation(*args)
        except OSError as error:
            self.error = error
            raise


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it over `path`, else remove it.

    Raises WriteError, naming the file, where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    raw = _WatchedFile(temporary, "wb")
    try:
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            raw.sync()
        os.replace(temporary, path)
    except Exception:
        if raw.error is not None:
            raise write_error(path, raw.error) from raw.error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_error(path: str | os.PathLike, error: OSError) -> WriteError:
    return WriteError(
        f"{path} cannot be written: {error.strerror}; what was saved before is whole: make room and go on with "
        "--resume, or where no checkpoint was saved yet begin anew with --overwrite"
    )


def flock(file: IO) -> bool | None:
    """Whether this process has the open file to itself now, until it closes it or ends; None where nobody can know.

    That is so on file systems without locks, as some network drives are.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def try_lock(file: IO) -> bool:
    """Whether nobody else has the open file; True with a warning where nobody can know."""
    locked = flock(file)
    if locked is None:
        text = f"{Path(file.name).parent} is on a drive without locks: see to it that no two runs write to it"
        warnings.warn(text, stacklevel=2)
    return locked is not False


def wait_for_lock(file: IO, seconds: float) -> None:
    """`try_lock` until it succeeds. Raises RunInUse where it does not within so many seconds."""
    for attempt in range(max(1, int(seconds / 0.1))):
        if attempt:
            time.sleep(0.1)
        if try_lock(file):
            return
    raise RunInUse(f"{Path(file.name).parent} is in use by another run; stop it, or name another directory")


def write_pickle(path: Path, content: Any) -> None:
    """Write a pickle whole or not at all."""
    with atomic_write(path) as file:
        pickle.dump(content, file, protocol=4)


def save_checkpoint(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """`torch.save` of what `plain` makes of `content`, atomically. Raises ValueError as `plain` does, WriteError."""
    content = plain(content, Path(path).name)
    with atomic_write(path) as file:
        torch.save(content, file)


def plain(value: Any, name: str = "content") -> Any:
    """`value` in the types that `load_checkpoint` admits, all the way down.

    numpy's numbers and text become python's, its arrays lists, paths text, sets lists; tensors stay.
    Raises ValueError, naming the entry, for anything else.
    """
    if isinstance(value, np.ndarray | np.generic):
        listed = value.tolist()
        return plain(listed, name) if not isinstance(listed, np.generic) else float(value)  # longdouble stays itself
    if isinstance(value, OrderedDict):
        copy = OrderedDict((plain(k, name), plain(v, f"{name}[{k!r}]")) for k, v in value.items())
        copy.__dict__.update(value.__dict__)  # a state_dict's versions
        return copy
    if isinstance(value, Mapping):
        return {plain(k, name): plain(v, f"{name}[{k!r}]") for k, v in value.items()}
    if isinstance(value, KEPT):
        return value
    if isinstance(value, tuple):
        return tuple(plain(v, f"{name}[{i}]") for i, v in enumerate(value))
    if isinstance(value, list | set | frozenset):
        return [plain(v, f"{name}[{i}]") for i, v in enumerate(value)]
    for kind in (bool, int, float, complex, str, bytes):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise ValueError(f"{name} is a {type(value).__name__}, which no checkpoint holds; wanted numbers, text or tensors")


def uncompiled(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A `state_dict()` by the names that its modules have where none of them is compiled."""
    return {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}


def load_into(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """`module.load_state_dict(state)`, whichever modules are compiled here, and were where `state` comes from."""
    own = {name.replace(COMPILED, ""): name for name in module.state_dict()}
    module.load_state_dict({own.get(name, name): tensor for name, tensor in uncompiled(state).items()})


def _kind(path: str | os.PathLike) -> str | None:
    """What a file is by its first bytes, where these are no checkpoint's, and what to do with it."""
    try:
        kind = kind_of(Path(path).read_bytes())
    except OSError:
        return None
    return None if kind is None or "torch.save" in kind[0] else "; ".join(kind)


def load_checkpoint(path: str | os.PathLike, device: torch.device | str = "cpu", mmap: bool = False) -> dict:
    """Read a checkpoint with `weights_only=True`. Raises ValueError, naming the file, for anything that is not one.

    With `mmap` its tensors are read from the file when they are used.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint file") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]  # without torch's advice
        if kind := _kind(path):
            reason = f"it is {kind}"
        raise ValueError(
            f"{path}: not a readable checkpoint (truncated, or not written by torch.save): {reason}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, wanted a checkpoint of this project (a dict)")
    return content

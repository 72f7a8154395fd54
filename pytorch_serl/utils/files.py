"""Files that are either the old one or the new one, never half of either."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from pytorch_serl.utils.file_kinds import kind_of


class WriteError(OSError):
    """The disk did not take what was to be written; the file that was there before is whole."""


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
        f"{path} cannot be written: {error.strerror}; what was saved before is whole: make room and go on with --resume"
    )


def _kind(path: str | os.PathLike) -> str | None:
    """What a file is by its first bytes, where these are no checkpoint's, and what to do with it."""
    try:
        kind = kind_of(Path(path).read_bytes())
    except OSError:
        return None
    return None if kind is None or "torch.save" in kind[0] else "; ".join(kind)


def load_checkpoint(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict:
    """Read a checkpoint with `weights_only=True`. Raises ValueError, naming the file, for anything that is not one."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
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

"""Episodes on disk as they happen: one append-only file each, so that nothing is lost when a run is killed.

A file is a series of gzip members with a pickle in each: first the observation after the reset, then a record per
step. `gzip.open` and repeated `pickle.load` read it without this project. A member that was being written when the
run was killed is left out on reading.
"""

import errno
import gzip
import os
import pickle
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pytorch_serl.data.safe_pickle import safe_loads
from pytorch_serl.utils.files import write_error

FOLDER, SUFFIX = "episodes", ".pkl.gz"
GZIP = 16 + zlib.MAX_WBITS  # what zlib calls gzip's format
CHUNK = 2**16  # bytes read at a time
NAME = re.compile(r"([0-9]{6}|[1-9][0-9]{6,})" + re.escape(SUFFIX))
FIRST = b"}\x94\x8c\x0cobservations"  # so the first record begins, behind the pickle's own 11 bytes: a dict of one key
ZEROS = 64  # so many at the end are not part of a record
LARGEST_RECORD = 2**28  # bytes; a gzip file of a megabyte can grow to gigabytes


class EpisodeWriter:
    """Appends to the files of a run.

    Args:
        save_dir: the run's; files go to its folder `episodes`.
        keys: observation entries to keep (cameras as uint8 images, `state`).

    `marks` goes into every step's record.
    """

    def __init__(self, save_dir: str | os.PathLike, keys: Iterable[str]):
        self.folder, self.keys, self.marks = Path(save_dir) / FOLDER, list(keys), {}

    def start(self, number: int, obs: dict[str, Any]) -> None:
        """Begin the file of episode `number` with the observation after the reset. Raises WriteError."""
        self.path = self.folder / f"{number:06d}{SUFFIX}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("wb", {"observations": self._kept(obs)})

    def add(self, step: dict[str, Any], next_obs: dict[str, Any]) -> None:
        """Append one step: `step` holds plain values and arrays. Raises WriteError."""
        self._write("ab", step | self.marks | {"next_observations": self._kept(next_obs)})

    def _kept(self, obs: dict[str, Any]) -> dict[str, np.ndarray]:
        return {key: np.asarray(obs[key]) for key in self.keys if key in obs}

    def _write(self, mode: str, record: dict[str, Any]) -> None:
        member = packed(record)
        try:
            with open(self.path, mode, buffering=0) as file:
                if file.write(member) < len(member):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise write_error(self.path, error) from error


def packed(record: dict[str, Any]) -> bytes:
    """A record as it is appended."""
    return gzip.compress(pickle.dumps(record, protocol=4), compresslevel=1, mtime=0)


def episode_files(save_dir: str | os.PathLike) -> dict[int, Path]:
    """The files of a run by episode number, in order; what others left in their folder is passed over."""
    files = [path for path in (Path(save_dir) / FOLDER).glob(f"*{SUFFIX}") if NAME.fullmatch(path.name)]
    return dict(sorted((int(path.name.removesuffix(SUFFIX)), path) for path in files if path.is_file()))


def is_episode_file(path: str | os.PathLike) -> bool:
    """Whether a file begins as `EpisodeWriter` begins one."""
    with open(path, "rb") as file:
        head = file.read(CHUNK)
    if not head.startswith(b"\x1f\x8b"):
        return False
    try:
        return zlib.decompressobj(GZIP).decompress(head, 64)[11:].startswith(FIRST)
    except zlib.error:
        return False


def read_episode(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The transitions of one file, in the demo file's format, with `corrected` and what else the steps hold.

    Where the end is missing, the last whole step counts as cut off by a time limit: `dones` True, `masks` as it was.
    Returns: an empty list where not even one step is whole. Raises ValueError for a file that is something else.
    """
    records = _records(path)
    if not records:
        return []
    obs, transitions = records[0].get("observations"), []
    for index, record in enumerate(records[1:]):
        if obs is None or not {"actions", "rewards", "masks", "dones", "next_observations"} <= record.keys():
            raise ValueError(f"{path}: step {index} has {sorted(record)}; not an episode file of this project")
        transitions.append({"observations": obs} | record)
        obs = record["next_observations"]
    if transitions:
        transitions[-1]["dones"] = True
    return transitions


def _records(path: str | os.PathLike) -> list[dict[str, Any]]:
    data, place, records = Path(path).read_bytes(), 0, []
    written = len(data.rstrip(b"\0"))  # a machine that lost power leaves zeros where the last step was being written
    written = len(data) if len(data) - written < ZEROS else written
    while place < len(data):
        if place >= written:
            break
        member, parts, size = zlib.decompressobj(GZIP), [], 0
        while place < len(data) and not member.eof:
            chunk = data[place : place + CHUNK]
            try:
                parts.append(member.decompress(chunk, LARGEST_RECORD + 1 - size))
            except zlib.error as error:
                if written < len(data):
                    return records
                raise ValueError(f"{path}: damaged after {len(records)} records ({error}); move it away") from None
            size += len(parts[-1])
            if size > LARGEST_RECORD:
                raise ValueError(
                    f"{path}: record {len(records)} has more than {LARGEST_RECORD:,} bytes; not one of ours"
                )
            place += len(chunk) - len(member.unused_data)
        if not member.eof:
            break
        record = safe_loads(b"".join(parts), path)
        if not isinstance(record, dict):
            raise ValueError(f"{path}: holds a {type(record).__name__}; not an episode file of this project")
        records.append(record)
    return records

"""The files of a LeRobot dataset: parquet tables, and pictures out of videos or tables."""

import io
import math
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pytorch_serl.data.checks import Place

TABLE = re.compile(r"file-[0-9]+\.parquet")
AGAIN = "download or copy it again"


def require_packages() -> None:
    """Raise ValueError, with what to install, where pyarrow or av is missing."""
    try:
        import av  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        if error.name is None:  # it is there and cannot be loaded: with a NumPy that is too old, say
            raise ValueError(f"a LeRobot dataset cannot be read here: {error}") from None
        raise ValueError(
            f"a LeRobot dataset needs {error.name}: python -m pip install -r requirements/lerobot-data.txt"
        ) from None


def read_table(place: Place, root: Path, folder: str, columns: list[str] | None = None) -> Any:
    """All parquet files below `folder`, in the order of their names, as one pyarrow table."""
    import pyarrow as pa
    from pyarrow import parquet

    files = _tables(root / folder)
    if not files:
        raise place.error(folder, "no parquet file", "a whole dataset", AGAIN)
    try:
        return pa.concat_tables([parquet.read_table(file, columns=columns) for file in files])
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:160]  # pyarrow's has many lines
        raise place.error(folder, reason, "readable parquet files", AGAIN) from None


def _tables(folder: Path) -> list[Path]:
    """The dataset's tables in the order of their names; what others left beside them is passed over."""
    files = [
        path
        for path in sorted(folder.rglob("*.parquet"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return [path for path in files if TABLE.fullmatch(path.name)] or files


def read_frames(
    place: Place, root: Path, info: dict[str, Any], feature: str, episodes: list[dict], rows: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """The pictures uint8 (H, W, 3) of one camera, of all episodes, in order.

    Args:
        episodes: rows of the episodes' table. rows: by episode, the frames' rows in the data's table, ascending.
    Raises DataError where a file or a frame is missing.
    """
    if info["features"][feature]["dtype"] == "image":
        pictures = read_table(place, root, "data", [feature])[feature]
        for episode, kept in zip(episodes, rows):
            for row in kept:
                picture = pictures[int(row)].as_py()
                if not isinstance(picture, dict) or not picture.get("bytes"):
                    where = f"episode {episode['episode_index']}: {feature}"
                    raise place.error(where, f"no picture in row {row}", "pictures in the table", AGAIN)
                yield from _decode(place, io.BytesIO(picture["bytes"]), None, 0.0)
        return
    template = info.get("video_path")
    if not isinstance(template, str):
        raise place.error("meta/info.json: video_path", f"{template}", "where the videos are", AGAIN)

    def file(pair):
        index = {
            name: int(_number(place, pair[0], f"videos/{feature}/{name}")) for name in ("chunk_index", "file_index")
        }
        try:
            return root / template.format(video_key=feature, **index)
        except (LookupError, ValueError) as error:
            raise place.error("meta/info.json: video_path", f"{template!r} ({error})", "a template", AGAIN) from None

    for path, group in groupby(zip(episodes, rows), key=file):
        times = [
            _number(place, episode, f"videos/{feature}/from_timestamp")
            + (row - _number(place, episode, "dataset_from_index")) / info["fps"]
            for episode, kept in group
            for row in kept
        ]
        yield from _decode(place, path, times, 0.5 / info["fps"])


def _number(place: Place, episode: dict[str, Any], name: str) -> float:
    """An entry of an episode's row in the metadata."""
    value = episode.get(name)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        what = "nothing" if name not in episode else f"{value}"
        raise place.error(f"meta/episodes: episode {episode['episode_index']}: {name}", what, "a number", AGAIN)
    return value


def _decode(place: Place, source: Any, times: Iterable[float] | None, tolerance: float) -> Iterator[np.ndarray]:
    """The frames nearest to ascending `times` in seconds, or all of them."""
    import av

    name = source.name if isinstance(source, Path) else "picture"
    try:
        with av.open(str(source) if isinstance(source, Path) else source) as container:
            wanted, time = iter(times or ()), None
            due = next(wanted, None)
            for frame in container.decode(video=0):
                time = frame.time
                if times is None or (due is not None and abs(time - due) <= tolerance):
                    yield frame.to_ndarray(format="rgb24")
                    due = next(wanted, None)
                if times is not None and (due is None or time > due + tolerance):
                    break
    except (av.FFmpegError, OSError) as error:
        raise place.error(name, str(error), "a readable video", AGAIN) from None
    if due is not None:
        raise place.error(name, f"no frame at {due:.3f} s", "every frame of the table", AGAIN)


def resized(image: np.ndarray, size: int | None) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (size, size, 3), as the encoder resizes; None leaves the image as it is."""
    if size is None or image.shape[:2] == (size, size):
        return image
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()

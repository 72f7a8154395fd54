"""Write demos or the recorded episodes of a run as a LeRobot dataset, format v3, that `--demo_paths` reads again.

    python -m pytorch_serl.data.lerobot.writer --demo_paths ./data/demos.pkl --fps 10 --output_dir ./data/lerobot
    python -m pytorch_serl.data.lerobot.writer --run_dir ./hybrid_ckpt --fps 10 --output_dir ./data/lerobot

Everything comes back bit for bit but the pictures, which go through H.264. Needs requirements/lerobot-data.txt.
Each episode has one frame more than steps: what its last step led to, with an action of 0 and `final` True.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pytorch_serl.data.checks import Place, load_transitions, show, take
from pytorch_serl.data.demos import read_transition
from pytorch_serl.data.episode_files import episode_files, read_episode
from pytorch_serl.data.lerobot.files import require_packages
from pytorch_serl.data.lerobot.reader import FINAL, INFO, MAPPING, MASK, PENALTY
from pytorch_serl.utils.output import print_anything

CRF = 12  # quality of the videos; 0 would be without loss, 23 is the codec's default
PATHS = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
PER_CHUNK = 1000  # files in a folder
PANDAS = json.dumps(
    {  # the lerobot package reads the tasks with pandas and wants their texts as its index
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
            for name, kind, numpy_kind in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
        ],
        "pandas_version": "2.0.0",
    }
)


def read_episodes(
    demo_paths: Iterable[str], run_dir: str | None, image_keys: list[str] | None = None
) -> Iterator[tuple[Place, list[dict]]]:
    """The episodes of demo files, or those that a run recorded in `episodes/`: where they are, and their transitions.

    Args:
        image_keys: the demo files' cameras to write; None: those with colour images.
    Raises DataError for a transition that `read_demos` would refuse.
    """
    for path in demo_paths:
        raw, start = load_transitions(path), 0
        episode: list[dict] = []
        if not raw:  # a run was stopped between a reset and the first step
            continue
        observation, has_masks = _first_observation(path, raw), "masks" in raw[0]
        cameras = image_keys or _cameras(path, observation)
        for index, item in enumerate(raw):
            episode.append(read_transition(Place(path, index), item, cameras, "state" in observation, has_masks))
            if episode[-1]["dones"] or index == len(raw) - 1:
                yield Place(path, start, index), episode
                episode, start = [], index + 1
    for path in episode_files(run_dir).values() if run_dir else ():
        if episode := read_episode(path):
            yield Place(str(path)), episode


def _first_observation(path: str, raw: list[dict]) -> dict:
    place = Place(path, 0)
    observation = take(place, raw[0], "observations")
    if not isinstance(observation, dict):
        raise place.error(
            "observations", show(observation), "a dict of images and state", "save observations as a dict"
        )
    return observation


def _cameras(path: str, observation: dict) -> list[str]:
    """The cameras with colour images in a file's first observation; prints which are left out.

    Where there are none, all of them: reading them says what is wrong.
    """
    images = {key: value for key, value in observation.items() if np.ndim(value) >= 3}
    arrays = {key: value for key, value in images.items() if isinstance(value, np.ndarray)}
    colour = [key for key, value in arrays.items() if value.dtype == np.uint8 and value.shape[-1] == 3]
    for key in (key for key in images if colour and key not in colour):
        print(f"{path}: {key!r} is left out: {show(images[key])}, not uint8 (H, W, 3)")
    return colour or list(images)


class DatasetWriter:
    """Collects episodes; `close` writes the tables.

    Args:
        root: a folder that does not exist yet. fps: control steps per second. task: what is done, in words.
    Raises FileExistsError where `root` is there.
    """

    def __init__(self, root: Path, fps: int, task: str):
        require_packages()
        if root.exists():
            raise FileExistsError(f"{root} exists; remove it or name another --output_dir")
        self.target, self.fps, self.task = root, fps, task
        self.root = root.with_name(f".{root.name}.{os.getpid()}.tmp")  # until it is whole
        self.rows: list[dict] = []
        self.episodes: list[dict] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.keys: list[str] = []  # of every observation
        self.has_penalty = False
        self.sums: dict[str, list[np.ndarray]] = {}  # of each camera: means over the pixels, by frame

    def add(self, place: Place, episode: list[dict]) -> None:
        """One episode. Raises ValueError where a next observation is not the following one, or shapes change."""
        number, first = len(self.episodes), len(self.rows)
        observations = [t["observations"] for t in episode] + [episode[-1]["next_observations"]]
        self.keys = self.keys or sorted(observations[0])
        if sorted(observations[0]) != self.keys:
            raise place.error("observations", f"{sorted(observations[0])}", f"{self.keys}, as before", "write it apart")
        for i, (transition, following) in enumerate(zip(episode, observations[1:])):
            if not all(np.array_equal(transition["next_observations"][key], following[key]) for key in following):
                raise Place(place.path, (place.first or 0) + i).error(
                    "next_observations", "another picture or state", "the observations that follow", "write it in parts"
                )
        cameras = [key for key, value in observations[0].items() if np.ndim(value) == 3]
        for i, obs in enumerate(observations):
            final = i == len(episode)
            self._row(number, i, obs, None if final else episode[i], np.zeros_like(episode[0]["actions"]))
        entry = {
            "episode_index": number,
            "tasks": [self.task],
            "length": len(observations),
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": first,
            "dataset_to_index": len(self.rows),
        }
        for key in cameras:
            entry |= self._video(f"observation.images.{key}", number, [obs[key] for obs in observations])
        self.episodes.append(entry | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})

    def _row(self, number, frame, obs, step, no_action):
        final = step is None
        step = step or {"actions": no_action, "rewards": 0.0, "dones": True, "masks": 1.0}
        row = {"action": np.asarray(step["actions"], np.float32)}
        if "state" in obs:
            row["observation.state"] = np.asarray(obs["state"], np.float32)
        done = bool(step["dones"])
        row |= {
            "next.reward": float(step["rewards"]),
            "next.done": done,
            MASK: float(step.get("masks", 1.0 - done)),
            "corrected": bool(step.get("corrected", False)),
            FINAL: final,
            "timestamp": frame / self.fps,
            "frame_index": frame,
            "episode_index": number,
            "index": len(self.rows),
            "task_index": 0,
        }
        row[PENALTY] = float(step.get("grasp_penalty") or 0.0)
        self.has_penalty |= step.get("grasp_penalty") is not None
        shapes = {key: np.shape(value) for key, value in [*row.items(), *obs.items()]}
        if changed := [key for key, shape in shapes.items() if self.shapes.setdefault(key, shape) != shape]:
            raise ValueError(f"{changed[0]} is {shapes[changed[0]]} in episode {number}, was {self.shapes[changed[0]]}")
        self.rows.append(row)

    def _video(self, feature, number, images):
        import av

        place = {"chunk_index": number // PER_CHUNK, "file_index": number % PER_CHUNK}
        path = self.root / PATHS["video_path"].format(video_key=feature, **place)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=self.fps, options={"crf": str(CRF), "g": "2"})
            stream.height, stream.width = images[0].shape[:2]
            stream.pix_fmt = "yuv444p"  # colours at full resolution, and sides may be odd
            for image in images:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
            container.mux(stream.encode())
        self.sums.setdefault(feature, []).append(np.stack([image.mean((0, 1)) / 255 for image in images]))
        self.shapes[feature] = images[0].shape
        prefix = f"videos/{feature}/"
        return {prefix + name: value for name, value in place.items()} | {
            prefix + "from_timestamp": 0.0,
            prefix + "to_timestamp": len(images) / self.fps,
        }

    def close(self) -> None:
        """Write the tables, the description and the mapping. Raises ValueError where there is no episode."""
        import pyarrow as pa
        from pyarrow import parquet

        if not self.episodes:
            raise ValueError("no episode to write")
        for row in () if self.has_penalty else self.rows:
            del row[PENALTY]
        table = pa.table({name: _column(pa, [row[name] for row in self.rows]) for name in self.rows[0]})
        tasks = pa.table({"task_index": [0], "task": [self.task]}).replace_schema_metadata({"pandas": PANDAS})
        for path, content in (
            (PATHS["data_path"].format(chunk_index=0, file_index=0), table),
            ("meta/tasks.parquet", tasks),
            ("meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(self.episodes)),
        ):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(content, self.root / path)
        cameras = {feature.removeprefix("observation.images."): feature for feature in self.sums}
        mapping = {"cameras": cameras, "gripper": {"close": -1, "hold": 0, "open": 1}, "image_size": None}
        for path, content in ((INFO, self._info()), ("meta/stats.json", self._stats()), (MAPPING, mapping)):
            (self.root / path).write_text(json.dumps(content, indent=2) + "\n")
        self.root.rename(self.target)

    def _info(self):
        features = {
            name: {"dtype": str(np.asarray(value).dtype), "shape": list(np.shape(value)) or [1], "names": None}
            for name, value in self.rows[0].items()
        }
        features["timestamp"]["dtype"] = "float32"
        for feature in self.sums:
            height, width, _ = self.shapes[feature]
            features[feature] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.channels": 3,
                    "video.pix_fmt": "yuv444p",
                    "video.fps": self.fps,
                    "has_audio": False,
                    "is_depth_map": False,
                },
            }
        return {
            "codebase_version": "v3.0",
            "fps": self.fps,
            "features": features,
            "total_episodes": len(self.episodes),
            "total_frames": len(self.rows),
            "total_tasks": 1,
            "chunks_size": PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "robot_type": None,
            "splits": {"train": f"0:{len(self.episodes)}"},
            **PATHS,
        }

    def _stats(self):
        values = {name: np.stack([np.atleast_1d(row[name]) for row in self.rows]) for name in self.rows[0]}
        values |= {feature: np.concatenate(means)[..., None, None] for feature, means in self.sums.items()}
        return {
            name: {kind: getattr(x.astype(float), kind)(0).tolist() for kind in ("min", "max", "mean", "std")}
            | {"count": [len(x)]}
            for name, x in values.items()
        }


def _column(pa, values):
    """Scalars as they are, vectors as lists of fixed length."""
    first = np.asarray(values[0])
    if not first.ndim:
        return pa.array(values)
    flat = pa.array(np.concatenate(values))
    return pa.FixedSizeListArray.from_arrays(flat, len(first))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo_paths", nargs="+", default=[], help="demo files (pickles)")
    parser.add_argument("--image_keys", nargs="+", help="cameras of --demo_paths; None: all with colour images")
    parser.add_argument("--run_dir", help="a run of train_hybrid.py, for its episodes/")
    parser.add_argument("--fps", type=int, required=True, help="control steps per second of the recording")
    parser.add_argument("--task", default="", help="what is done, in words")
    parser.add_argument("--output_dir", required=True, help="the dataset's folder; must not exist")
    args = parser.parse_args(argv)
    if args.fps < 1 or not (args.demo_paths or args.run_dir):
        parser.error("wanted --fps of 1 or more, and --demo_paths or --run_dir")
    if args.image_keys and args.run_dir:
        parser.error("--image_keys chooses among the cameras of --demo_paths; a run is written with those it used")
    return args


def main(argv=None):
    """Returns the exit code: 0, or 2 after an error in the input."""
    print_anything()
    args = parse_args(argv)
    writer = None
    try:
        writer = DatasetWriter(Path(args.output_dir), args.fps, args.task)
        for place, episode in read_episodes(args.demo_paths, args.run_dir, args.image_keys):
            writer.add(place, episode)
        writer.close()
    except (OSError, ValueError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    finally:
        if writer is not None:
            shutil.rmtree(writer.root, ignore_errors=True)
    print(f"wrote {len(writer.episodes)} episodes, {len(writer.rows)} frames to {args.output_dir}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What the frozen backbone makes of the demos, in a file beside them: the next run need not encode them again.

`.demos.pkl.encoded` beside `demos.pkl`: a line of JSON (`key`, `sha256` of what follows), then the features of all
frames in order, float16 (frames, cameras, views, *agent.feature_shape). There is one for a demo file; another key
replaces it. It may be deleted at any time, and whatever is wrong with it, the demos are encoded again.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.networks.augment import crop_offsets
from pytorch_serl.training.run import is_being_written, rng_state, set_rng_state
from pytorch_serl.utils.files import atomic_write, uncompiled

DTYPE = np.dtype("<f2")  # what a buffer holds
SMALLEST, LARGEST = 5_000_000, 2_000_000_000  # bytes: of less, a matter of seconds, and of more nothing is kept
ROOM = 10  # times as much must be free on the drive
FORMAT = 2  # of the file; a higher one makes older files stale


class DemoCache:
    """The file for these frames, agent and number of views, and what is random about them.

    Args:
        source: the demo file.
        agent: with a frozen backbone.
        frames: observations with images uint8 (H, W, 3), in the order in which `agent.encode_frames` gets them.
        views: as there.

    Its `path` is None where nothing is to be kept: the demo file is not here, or the features are too few or too many.
    Its key is a hash of the frames, the backbone, the crops that are drawn now, and of what computes them: from the
    same seed a run without the file draws and computes the same, bit for bit.
    """

    def __init__(self, source: str, agent: SACAgent, frames: list[dict[str, Any]], views: int):
        self.path = Path(source).with_name(f".{Path(source).name}.encoded") if os.path.exists(source) else None
        self.image_keys = agent.image_keys
        self.shape = (len(frames), len(agent.image_keys), views, *agent.feature_shape)
        self.bytes = int(np.prod(self.shape)) * DTYPE.itemsize
        if not SMALLEST <= self.bytes <= LARGEST:
            self.path = None
        if self.path is not None:
            before = rng_state()
            crops = [crop_offsets(views, agent.device) for _ in frames]  # as `encode_frames` will
            self.random_after = rng_state()
            set_rng_state(before)
            self.key = _key(agent, frames, torch.stack(crops) if views > 1 else None, views)

    def read(self) -> np.ndarray | None:
        """The features (frames, cameras, views, C, 16); the random numbers go on as if they had been made here.

        None, and nothing has changed, where there are none or not these, or the file is damaged.
        """
        try:
            with open(self.path, "rb") as file:
                header = json.loads(file.readline(1000))
                start = file.tell()
            if header["key"] != self.key or os.path.getsize(self.path) != start + self.bytes:
                return None
            features = np.memmap(self.path, DTYPE, "r", start, self.shape)
            if hashlib.sha256(features).hexdigest() != header["sha256"]:
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no file, or no such file
            return None
        set_rng_state(self.random_after)
        print(f"the demos' encoding is read from {self.path} ({self.bytes / 1e6:.0f} MB)", flush=True)
        return features

    def write(self, frames: Iterable[dict[str, Any]]) -> None:
        """Keep the encoded frames, as `agent.encode_frames` returned them; does nothing where that cannot be done."""
        try:
            for file in self.path.parent.glob(glob.escape(f".{self.path.name}.") + "*.tmp"):  # of runs that were killed
                if not is_being_written(file):
                    file.unlink(missing_ok=True)
            if shutil.disk_usage(self.path.parent).free < ROOM * self.bytes:
                return
            features = [np.ascontiguousarray(frame[key], DTYPE) for frame in frames for key in self.image_keys]
            content = hashlib.sha256()
            for feature in features:
                content.update(feature)
            with atomic_write(self.path) as file:
                file.write((json.dumps({"key": self.key, "sha256": content.hexdigest()}) + "\n").encode())
                for feature in features:
                    file.write(feature)
        except OSError:  # nobody may write there, or the drive is full
            return
        print(f"the demos' encoding is kept in {self.path} ({self.bytes / 1e6:.0f} MB) for the next run", flush=True)


def _key(agent: SACAgent, frames: list[dict[str, Any]], crops: torch.Tensor | None, views: int) -> str:
    device, key = agent.device, hashlib.sha256()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    # another number of threads adds in another order
    how = [torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]
    stored = [views, agent.image_keys, agent.feature_shape, agent.encoder.keypoint_maps]
    facts = [FORMAT, torch.__version__, device.type, name, *how, *stored]
    key.update(json.dumps(facts).encode())
    for name, tensor in uncompiled(agent.backbone.state_dict()).items():
        key.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        key.update(tensor.detach().cpu().contiguous().numpy())
    for frame in frames:
        for image in (np.ascontiguousarray(frame[k]) for k in agent.image_keys):
            key.update(f"{image.dtype} {image.shape}".encode())
            key.update(image)
    if crops is not None:
        key.update(crops.cpu().numpy())
    return key.hexdigest()

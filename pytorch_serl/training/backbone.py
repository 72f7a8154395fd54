"""Finding, reading, downloading and saving the frozen ResNet-10.

The published weights are those that HIL-SERL downloads: `resnet10_params.pkl`, ResNet-10 trained on ImageNet-1K, 21 MB,
kept in `~/.serl/` (an installation of HIL-SERL and this one share the file). Without them a backbone trained on the
user's own frames serves, and without that the one that comes with the repository (docs/backbone.md). A random one,
which learns far worse, is there for comparisons.
"""

import os
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pytorch_serl.data.safe_pickle import safe_load
from pytorch_serl.hil_serl.names import flatten, resnet10_state
from pytorch_serl.networks import shipped
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.utils.files import load_checkpoint, save_checkpoint, uncompiled

PUBLISHED_URL = "https://github.com/rail-berkeley/serl/releases/download/resnet10/resnet10_params.pkl"
PUBLISHED_PATH = Path("~/.serl/resnet10_params.pkl")
CHUNK_BYTES = 1 << 16
RANDOM = "random"  # in the place of a file


class DownloadError(ConnectionError):
    """The published weights could not be fetched."""


def find_backbone(
    path: str | os.PathLike | None = None, own: str | os.PathLike | None = None, download: bool = False
) -> tuple[ResNet10 | None, str]:
    """The best frozen backbone at hand: `path`, else the published one, else the user's `own`, else the shipped one.

    Args:
        path: the published `.pkl` or a `.pt` of `save_backbone`, which must exist; or "random".
        own: a `.pt` of `save_backbone`; used when it exists and the published weights are not there.
        download: fetch the published weights when `path` is not given and they are not there.
    Returns: the backbone on the CPU and a line to print, which says why; None means that the agent makes a random one.
    Raises ValueError for a file that does not fit, DownloadError.
    """
    if path is not None and str(path) == RANDOM:
        return None, (
            "backbone: random, frozen. WARNING: learning from images is much slower with it; that is for comparisons, "
            f"without --backbone {RANDOM} the best at hand is used"
        )
    if path is not None:
        path = _at_home(path)
        if not path.is_file():
            raise ValueError(
                f"{path}: no such backbone file; wanted HIL-SERL's resnet10_params.pkl, a .pt of this project or "
                f"the word {RANDOM}"
            )
        return read_backbone(path)
    published, note = _readable(PUBLISHED_PATH)
    if download and published is None:
        published = _at_home(PUBLISHED_PATH)
        download_published(published, PUBLISHED_URL)
    if published is not None:
        return read_backbone(published)
    mine, own_note = _readable(own) if own is not None else (None, "")
    if mine is not None:
        resnet, line = read_backbone(mine)
        return resnet, f"{line}, since there are no published weights at {PUBLISHED_PATH}" + note
    absent = f"{PUBLISHED_PATH} (published weights; --download_backbone fetches them)"
    absent = absent if own is None else f"{absent} and no {own} (your own)"
    return shipped_backbone(), (
        f"backbone: the shipped one, distilled on photographs and drawn scenes (docs/backbone.md, sha256 "
        f"{shipped.SHIPPED_SHA256[:12]}), since there is no {absent}" + note + own_note
    )


def shipped_backbone() -> ResNet10:
    """The ResNet-10 that comes with the repository, frozen. Raises ValueError as `shipped_state` does."""
    resnet = ResNet10()
    resnet.load_state_dict(shipped.shipped_state())
    return resnet.requires_grad_(False).eval()


def _at_home(path: str | os.PathLike) -> Path:
    """The path with its ~ replaced. Raises ValueError where nobody knows the home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; set HOME, or give the file with --backbone and its whole path") from None


def _readable(path: str | os.PathLike) -> tuple[Path | None, str]:
    """The path of an optional file that can be read, or None; and a line where it could not be looked at."""
    try:
        path = _at_home(path)
        if not path.is_file():
            return None, ""
        open(path, "rb").close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return None, f"\nbackbone: {path} cannot be read and counts as not there ({reason})"
    return path, ""


def read_backbone(path: str | os.PathLike) -> tuple[ResNet10, str]:
    """A `.pt` of `save_backbone` or the published pickle, and a line to print. Raises ValueError naming the file."""
    path = Path(path)
    if zipfile.is_zipfile(path):  # what torch.save writes
        content = load_checkpoint(path)
        if content.get("kind") != "backbone" or not isinstance(content.get("state"), dict):
            raise ValueError(f"{path}: not a backbone file (its kind is {content.get('kind')!r})")
        state, line = uncompiled(content["state"]), f"backbone: {content.get('source')} ({path})"
    else:
        content = _load_dict(path)
        try:
            state = resnet10_state(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        line = f"backbone: published HIL-SERL weights ({path})"
    resnet = ResNet10()
    ours = {k: tuple(v.shape) for k, v in resnet.state_dict().items()}
    theirs = {k: tuple(getattr(v, "shape", ())) for k, v in state.items()}
    wrong = [
        f"{k} is {theirs.get(k)}, wanted {ours.get(k)}"
        for k in sorted(ours.keys() | theirs.keys())
        if ours.get(k) != theirs.get(k)
    ]
    if wrong:
        raise ValueError(f"{path} does not hold a ResNet-10: " + "; ".join(wrong))
    resnet.load_state_dict(state)
    return resnet.requires_grad_(False).eval(), line


def _load_dict(path: Path) -> dict[str, Any]:
    content = safe_load(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, wanted a dict of parameters")
    return content


def save_backbone(path: str | os.PathLike, resnet: ResNet10, source: str) -> None:
    """Write a backbone that `find_backbone` reads; `source` says in words where its weights come from."""
    state = {k: v.detach().cpu().contiguous() for k, v in uncompiled(resnet.state_dict()).items()}
    save_checkpoint(path, {"kind": "backbone", "state": state, "source": source})


def download_published(path: str | os.PathLike, url: str = PUBLISHED_URL) -> None:
    """Fetch the published weights to `path`, with a progress bar; `path` appears only when the file is whole and fits.

    Raises DownloadError when they cannot be reached, ValueError when what came is something else.
    """
    path = _at_home(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(url, part)
        read_backbone(part)
        os.replace(part, path)
    except (OSError, HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise DownloadError(
            f"could not download {url} ({reason}); fetch it on another machine and put it at {path}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{url}: what came is not the published ResNet-10 ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def _fetch(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=30) as response, open(path, "wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1]) as bar:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
            if total and bar.n != total:
                raise OSError(f"the connection ended after {bar.n} of {total} bytes")


def read_hil_serl_params(path: str | os.PathLike) -> dict[str, Any]:
    """The original's parameters as a flat dict by path: `.npz` of '/'-joined paths, or a pickled dict.

    Agents and classifiers take the result in hil_serl/load.py. Raises ValueError naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        return flatten(_load_dict(path))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return flatten({name: arrays[name] for name in arrays.files})
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a .npz of plain arrays: {error}") from error

"""What is no pickle, or more than one: read whole or refused in one line that says what it is."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import resource
import tarfile
import zlib

import numpy as np
import pytest
import torch

from pytorch_serl.data.checks import DataError, load_transitions, show
from pytorch_serl.data.demos import read_demos
from pytorch_serl.data.episode_files import EpisodeWriter, episode_files, read_episode
from pytorch_serl.data.frames import read_classifier_frames
from pytorch_serl.data.safe_pickle import UnsafePickleError, safe_load
from pytorch_serl.training.backbone import read_backbone
from pytorch_serl.utils.files import load_checkpoint
from tests.runs import FIXED, make_demos


def written(write, *args, **options):
    file = io.BytesIO()
    write(file, *args, **options)
    return file.getvalue()


def tarred(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("demos.pkl")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


PICKLE = pickle.dumps([{"observations": {}}])
TENSOR = {"a": torch.ones(2)}
KINDS = {  # name: (content, what it is, what to do)
    "gzip": (gzip.compress(PICKLE), "a gzip file", "gunzip -k"),
    "bzip2": (bz2.compress(PICKLE), "a bzip2 file", "bunzip2 -k"),
    "xz": (lzma.compress(PICKLE), "an xz file", "unxz -k"),
    "lzma": (lzma.compress(PICKLE, format=lzma.FORMAT_ALONE), "an lzma file", "unlzma"),
    "zstd": (b"\x28\xb5\x2f\xfd" + PICKLE, "a zstd file", "unzstd"),
    "zlib": (zlib.compress(PICKLE), "a zlib file", "joblib.load"),
    "tar": (tarred(PICKLE), "a tar archive", "tar -xf"),
    "torch": (written(lambda f: torch.save(TENSOR, f)), "torch.save", "torch.load(FILE, weights_only=True)"),
    "old torch": (
        written(lambda f: torch.save({"a": 1}, f, _use_new_zipfile_serialization=False)),
        "torch.save",
        "torch.load",
    ),
    "npz": (written(np.savez, a=np.ones(2)), "a numpy .npz file", "numpy.load"),
    "npy": (written(np.save, np.ones(2)), "a numpy .npy file", "numpy.load"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file", "h5py"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 9\n",
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "html": (b"\n<!DOCTYPE html>\n<html><body>log in</body></html>", "a web page", "download the file itself"),
    "json": (json.dumps([{"observations": 1}]).encode(), "JSON text", "json.load"),
    "csv": (b"x,y\n1,2\n3,4\n", "a table as text", "holds no pictures"),
    "text": (b"see you tomorrow\n", "a text", "check the path"),
    "safetensors": (b"\x11\0\0\0\0\0\0\0" + b'{"a":{"dtype":1}}', "a safetensors file", "safetensors.numpy"),
    "parquet": (b"PAR1" + bytes(20) + b"PAR1", "a parquet file", "LeRobot dataset"),
    "mp4": (b"\0\0\0\x20ftypisom" + bytes(20), "an MP4 video", "LeRobot dataset"),
    "zeros": (bytes(500), "zero bytes from the start", "copy it again"),
    "empty": (b"", "an empty file", "copy it again"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_are_named_with_the_remedy_that_fits(name, tmp_path):
    content, what, remedy = KINDS[name]
    success = tmp_path / "success"
    success.mkdir()
    path = success / "x.pkl"
    path.write_bytes(content)
    readers = [lambda: read_demos(path, "image", FIXED), lambda: read_classifier_frames(success, tmp_path, "image")]
    if name not in ("torch", "npz"):  # those are told apart by what they hold
        readers.append(lambda: read_backbone(path))
    for reader in readers:
        with pytest.raises(ValueError, match="x.pkl: got ") as error:
            reader()
        assert what in str(error.value) and remedy in str(error.value) and "\n" not in str(error.value)
    if name not in ("torch", "old torch"):
        with pytest.raises(ValueError, match="x.pkl: not a readable checkpoint") as error:
            load_checkpoint(path)
        assert what in str(error.value)


@pytest.mark.parametrize("protocol", range(6))
def test_a_cut_pickle_is_none_of_them(protocol, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([np.ones(3)] * 3, protocol)[:-3])
    with pytest.raises(ValueError, match=r"x.pkl: got a file that cannot be read as a pickle \(.*whole pickle"):
        safe_load(tmp_path / "x.pkl")


def test_several_dumps_are_all_read(tmp_path):
    whole = pickle.loads(make_demos(tmp_path / "whole.pkl", episodes=5).read_bytes())
    for protocol in (0, 4):
        with open(tmp_path / "five.pkl", "wb") as file:
            for start in range(0, 20, 4):
                pickle.dump(whole[start : start + 4], file, protocol)
        demos = read_demos(tmp_path / "five.pkl", "image", FIXED)
        assert len(demos.transitions) == 20 and demos.episode_ids[-1] == 4
        assert np.array_equal(demos.transitions[19]["observations"]["image"], whole[19]["observations"]["image"])


def test_several_dumps_of_classifier_frames_are_all_read(tmp_path):
    frames = [{"observations": {"image": np.full((8, 8, 3), i, np.uint8)}} for i in range(6)]
    for name in ("success", "failure"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.pkl").write_bytes(b"".join(pickle.dumps([frame]) for frame in frames))
    assert len(read_classifier_frames(tmp_path / "success", tmp_path / "failure", "image").labels) == 12


@pytest.mark.parametrize(
    "content, message",
    [
        (PICKLE * 3 + pickle.dumps({"a": 1}), "got 4 pickles one after the other, of which no. 4 is a dict"),
        (pickle.dumps({"observations": 1}) * 5, "got 5 pickles one after the other"),
        (PICKLE + b"garbage", "got a whole pickle and behind it, from byte .* 7 bytes that are none"),
        (PICKLE + b"\n", "1 bytes that are none"),
        (PICKLE + bytes(64), "64 bytes that are none"),
        (PICKLE * 2 + PICKLE[:-4], "got 2 whole pickles and behind them"),
    ],
    ids=["another thing", "dicts", "garbage", "a line's end", "zeros", "a cut one"],
)
def test_what_follows_a_pickle_is_not_ignored(content, message, tmp_path):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="x.pkl.*" + message) as error:
        load_transitions(tmp_path / "x.pkl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{}, {"conv_init": {"kernel": np.ones(3)}}])
def test_a_backbone_and_a_record_are_one_pickle(content, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content) * 2)
    with pytest.raises(ValueError, match="x.pkl: got 2 pickles one after the other, wanted one"):
        read_backbone(tmp_path / "x.pkl")
    (tmp_path / "000000.pkl.gz").write_bytes(gzip.compress(pickle.dumps(content) * 2))
    with pytest.raises(ValueError, match="000000.pkl.gz: got 2 pickles"):
        read_episode(tmp_path / "000000.pkl.gz")


@pytest.mark.parametrize(
    "content",
    [
        b"Nr\xff\xff\xff\x0f.",
        b"\x80\x02]r\x00\x00\x00\x10.",
        b"Np268435455\n.",
        b"\x8e" + (1 << 36).to_bytes(8, "little") + b"ab.",
        b"\x96" + (1 << 36).to_bytes(8, "little") + b"ab.",
        b"\x8d" + (1 << 36).to_bytes(8, "little") + b"ab.",
        b"\x80\x04\x95" + (1 << 36).to_bytes(8, "little") + b"N.",
        b"\x8b\xff\xff\xff\x7f.",
        b"T\xff\xff\xff\x7f.",
        b"B\xff\xff\xff\xff.",
    ],
)
def test_a_few_bytes_do_not_take_gigabytes(content, tmp_path):
    (tmp_path / "x.pkl").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB
    with pytest.raises(ValueError, match="x.pkl: got a") as error:
        safe_load(tmp_path / "x.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert "r" != content[1:2] or isinstance(error.value, UnsafePickleError)
    memo = content[-2:-1] in b"\x0f\x10\n"
    assert ("a memo of" in str(error.value)) == memo


def test_a_message_shows_little_of_what_is_nested():
    value = ()
    for _ in range(60):
        value = (value, value)  # written out it has 2 ** 60 brackets
    assert len(show(value)) < 60 and show("x" * 10**6).startswith("str 'xxx") and show(10**400).startswith("int ")


# ---------------------------------------------------------------- this project's own episode files


def make_episode(folder, number, reward=1.0, steps=5):
    rng = np.random.default_rng(number)
    obs = [
        {"image": rng.integers(0, 256, (16, 16, 3), np.uint8), "state": rng.random(3, np.float32)}
        for _ in range(steps + 1)
    ]
    writer = EpisodeWriter(folder, ["image", "state"])
    writer.start(number, obs[0])
    for i in range(steps):
        last = i == steps - 1
        step = {
            "actions": rng.uniform(-0.9, 0.9, 6).astype(np.float32),
            "rewards": reward * last,
            "masks": 1.0 - last * (reward > 0),
            "dones": last,
            "grasp_penalty": 0.0,
        }
        writer.add(step | {"corrected": i == 1, "succeed": last * reward}, obs[i + 1])
    return writer.path


def test_own_episode_files_are_demos(tmp_path):
    """A failed one beside a successful one too; alone it teaches nothing."""
    paths = [make_episode(tmp_path, 0), make_episode(tmp_path, 1, reward=0.0)]
    demos = read_demos(paths, "image", FIXED)
    assert [t["masks"] for t in demos.transitions] == [1, 1, 1, 1, 0, 1, 1, 1, 1, 1] and demos.episode_ids[-1] == 1
    assert sum(t["rewards"] for t in demos.transitions) == 1 and demos.state_dim == 3
    recorded = read_episode(paths[0])
    assert np.array_equal(demos.transitions[3]["actions"], recorded[3]["actions"])
    assert "2 episodes, 10 transitions, 1 successful" in demos.summary()
    with pytest.raises(DataError, match="000001.pkl.gz: .*rewards: got 0 throughout"):
        read_demos(paths[1], "image", FIXED)


def test_a_cut_own_episode_is_a_demo_up_to_its_last_whole_step(tmp_path):
    path = make_episode(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "copy.gz").write_bytes(path.read_bytes() + bytes(100_000))  # as a machine without power leaves it
    assert len(read_episode(tmp_path / "copy.gz")) == len(load_transitions(path)) == 4


def test_an_episode_that_was_stopped_before_its_first_step_is_left_out(tmp_path):
    empty = EpisodeWriter(tmp_path, ["image"])
    empty.start(0, {"image": np.zeros((8, 8, 3), np.uint8)})
    with pytest.raises(DataError, match="000000.pkl.gz: file: got no whole step"):
        read_demos(empty.path, "image", FIXED)
    whole = make_demos(tmp_path / "demos.pkl")
    demos = read_demos([empty.path, whole], "image", FIXED)
    assert len(demos.transitions) == len(read_demos(whole, "image", FIXED).transitions)
    assert any("1 files have no whole step and are left out" in text for text in demos.warnings)


def test_a_gzip_file_that_grows_beyond_measure_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pytorch_serl.data.episode_files.LARGEST_RECORD", 100_000)
    record = pickle.dumps({"observations": {"image": np.zeros((200, 200, 3), np.uint8)}}, 4)
    (tmp_path / "000000.pkl.gz").write_bytes(gzip.compress(record))
    with pytest.raises(ValueError, match="000000.pkl.gz: record 0 has more than 100,000 bytes"):
        load_transitions(tmp_path / "000000.pkl.gz")


# ---------------------------------------------------------------- what others leave beside our files

SIDE_FILES = ("._{}", ".{}", "{} (1)", "{}~", "{}.tmp", ".DS_Store", "Thumbs.db", "desktop.ini", "{}.part")


def test_side_files_in_episodes_are_passed_over(tmp_path):
    path = make_episode(tmp_path, 1)
    for name in SIDE_FILES:
        (path.parent / name.format(path.name)).write_bytes(b"\0\5\26\7")
    for name in ("000001 (1).pkl.gz", "000002.sync-conflict-20260101.pkl.gz", "1.pkl.gz", "0000001.pkl.gz"):
        (path.parent / name).write_bytes(b"nothing")
    (path.parent / "000003.pkl.gz").mkdir()
    assert episode_files(tmp_path) == {1: path}


def test_side_files_in_the_classes_are_passed_over(tmp_path):
    for name in ("success", "failure"):
        (tmp_path / name).mkdir()
        frames = [{"observations": {"image": np.full((8, 8, 3), 3, np.uint8)}}] * 2
        (tmp_path / name / "episode_0.pkl").write_bytes(pickle.dumps(frames))
        for side in SIDE_FILES:
            (tmp_path / name / side.format("episode_0.pkl")).write_bytes(b"\0\5\26\7")
        (tmp_path / name / "folder.pkl").mkdir()
    assert len(read_classifier_frames(tmp_path / "success", tmp_path / "failure", "image").file_names) == 2

"""Classifier data: reading, refusing, and splitting without leaks."""

import pickle

import numpy as np
import pytest

from pytorch_serl.data.checks import DataError
from pytorch_serl.data.frames import read_classifier_frames, split_by_group

SIDE = 8
OBS = "observations"
IMAGE = np.full((SIDE, SIDE, 3), 7, np.uint8)


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(value))


def make_frames(tmp_path, success=(6, 4), failure=(8, 5), episode_length=None):
    """One file per entry with that many frames; return the two directories."""
    rng = np.random.default_rng(0)
    for name, counts in (("success", success), ("failure", failure)):
        for number, count in enumerate(counts):
            frames = [{OBS: {"image": rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)}} for _ in range(count)]
            for index, frame in enumerate(frames):
                if episode_length:
                    frame["dones"] = (index + 1) % episode_length == 0
            write(tmp_path / name / f"{number}.pkl", frames)
    return tmp_path / "success", tmp_path / "failure"


def test_classifier_frames(tmp_path):
    success, failure = make_frames(tmp_path, episode_length=2)
    full = {"observations": {"image": IMAGE[None] + np.arange(3, dtype=np.uint8), "state": np.zeros((1, 4))}}
    full.update(actions=np.zeros(7), next_observations={}, rewards=1.0, masks=1.0, dones=np.bool_(False))
    write(success / "2.pkl", [full] * 3)  # HIL-SERL records whole transitions
    frames = read_classifier_frames(str(success), failure, ["image"])
    assert frames.images["image"].shape == (26, SIDE, SIDE, 3) and frames.images["image"].dtype == np.uint8
    assert frames.labels.tolist() == [1] * 13 + [0] * 13 and frames.labels.dtype == np.int64
    assert frames.files.tolist() == [0] * 6 + [1] * 4 + [2] * 3 + [3] * 8 + [4] * 5
    assert frames.file_names[3] == str(failure / "0.pkl")
    assert frames.episode.tolist()[:13] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]
    assert frames.warnings == [] and "success: 13 frames (50.0%) in 3 files, 6 episodes" in frames.summary()


def change_frame(change):
    def edit(success, failure):
        frames = pickle.loads((failure / "1.pkl").read_bytes())
        change(frames[2])
        write(failure / "1.pkl", frames)

    return edit


def clear(success, failure):
    for path in success.iterdir():
        path.unlink()


WRONG_FRAMES = {
    "label": (change_frame(lambda f: f.update(labels=1)), "1.pkl: transition 2: labels: got 1 .success.*wanted 0"),
    "label_value": (change_frame(lambda f: f.update(labels=3)), "1.pkl: transition 2: labels: got 3, wanted 0 or 1"),
    "label_text": (change_frame(lambda f: f.update(labels="no")), "1.pkl: transition 2: labels: got str"),
    "no_obs": (change_frame(lambda f: f.pop(OBS)), "1.pkl: transition 2: observations: got no keys"),
    "no_key": (
        change_frame(lambda f: f[OBS].pop("image")),
        r"1.pkl: transition 2: observations\['image'\]: got no keys",
    ),
    "float": (change_frame(lambda f: f[OBS].update(image=IMAGE / 255)), "1.pkl: transition 2: .*np.uint8"),
    "shape": (change_frame(lambda f: f[OBS].update(image=IMAGE[1:])), "1.pkl: transition 2: .*as in the first frame"),
    "empty_list": (lambda success, failure: write(failure / "1.pkl", []), "1.pkl: file: got an empty list"),
    "no_files": (clear, "success: success_dir: got no .*pkl file .an empty class"),
    "no_dir": (
        lambda success, failure: (clear(success, failure), success.rmdir()),
        "success_dir: got no such directory",
    ),
}


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_wrong_classifier_data(tmp_path, name):
    edit, pattern = WRONG_FRAMES[name]
    success, failure = make_frames(tmp_path)
    edit(success, failure)
    with pytest.raises(DataError, match=pattern) as error:
        read_classifier_frames(success, failure, ["image"])
    assert "\n" not in str(error.value)


def test_one_directory_for_both_classes(tmp_path):
    success, _ = make_frames(tmp_path)
    with pytest.raises(ValueError, match="one directory"):
        read_classifier_frames(success, success, ["image"])


def test_odd_classifier_data_is_a_warning(tmp_path):
    success, failure = make_frames(tmp_path, success=(2,), failure=(30,))
    same = pickle.loads((success / "0.pkl").read_bytes())[:1]
    write(failure / "1.pkl", [*same, {OBS: {"image": IMAGE}}])
    text = read_classifier_frames(success, failure, "image").summary()
    for part in ("2 success and 32 failure frames", "1 frames are in both classes", "1 of 34 images are blank"):
        assert part in text


@pytest.mark.parametrize(
    ("counts", "episode_length", "kind"),
    [
        ((10, 12, 8, 9, 11), None, "file"),
        ((3, 50), 1, "file"),
        ((40,), 5, "episode"),
        ((40,), None, "contiguous block"),
        ((2,), None, "contiguous block"),
        ((3,), 1, "episode"),
    ],
)
def test_split_keeps_groups_together(tmp_path, counts, episode_length, kind):
    frames = read_classifier_frames(*make_frames(tmp_path, counts, counts, episode_length), ["image"])
    for seed in range(5):
        train, val, text = split_by_group(frames, 0.2, seed)
        assert sorted([*train, *val]) == list(range(len(frames.labels)))
        assert set(frames.labels[train]) == set(frames.labels[val]) == {0, 1}
        assert f"success by {kind}," in text and f"failure by {kind}," in text
        groups = {"file": frames.files, "episode": frames.episode}.get(kind)
        if groups is not None:
            assert not set(groups[train]) & set(groups[val])
        else:  # at most one gap on either side of the block
            assert (np.diff(val[frames.labels[val] == 1]) == 1).all()
        if min(counts) >= 8:
            assert 0.1 <= len(val) / len(frames.labels) <= 0.3
        again = split_by_group(frames, 0.2, seed)
        assert np.array_equal(again[0], train) and np.array_equal(again[1], val)
    with pytest.raises(ValueError, match="val_fraction"):
        split_by_group(frames, 1.0, 0)


def test_one_frame_cannot_be_split(tmp_path):
    frames = read_classifier_frames(*make_frames(tmp_path, (1,), (5,)), ["image"])
    with pytest.raises(ValueError, match="success frames: got 1"):
        split_by_group(frames)

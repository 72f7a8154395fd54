"""Episodes on disk: what is written is read, whatever is cut off; files of others are refused."""

import gzip
import pickle

import numpy as np
import pytest

from pytorch_serl.data.episode_files import EpisodeWriter, episode_files, read_episode
from pytorch_serl.utils.files import WriteError


def write(folder, number=0, steps=4, done=True):
    rng = np.random.default_rng(number)
    observations = [
        {"image": rng.integers(0, 256, (8, 8, 3), np.uint8), "state": rng.random(3, np.float32), "other": 1}
        for _ in range(steps + 1)
    ]
    writer = EpisodeWriter(folder, ["image", "state"])
    writer.start(number, observations[0])
    for i in range(steps):
        last = done and i == steps - 1
        writer.add(
            {
                "actions": rng.random(2, np.float32),
                "rewards": float(last),
                "masks": 1.0 - last,
                "dones": last,
                "grasp_penalty": 0.0,
                "corrected": i == 1,
                "succeed": last,
            },
            observations[i + 1],
        )
    return observations, writer.path


def test_what_is_written_is_read(tmp_path):
    observations, path = write(tmp_path, number=3)
    write(tmp_path, number=12)
    assert list(episode_files(tmp_path)) == [3, 12] and episode_files(tmp_path)[3] == path
    episode = read_episode(path)
    assert [t["corrected"] for t in episode] == [False, True, False, False]
    assert [t["masks"] for t in episode] == [1, 1, 1, 0] and episode[-1]["succeed"] is True
    for i, transition in enumerate(episode):
        for name, obs in (("observations", observations[i]), ("next_observations", observations[i + 1])):
            assert transition[name].keys() == {"image", "state"}
            assert all(np.array_equal(transition[name][k], obs[k]) for k in ("image", "state"))
        assert i == 0 or transition["observations"] is episode[i - 1]["next_observations"]
    with gzip.open(path) as file:  # readable without this project
        assert pickle.load(file).keys() == {"observations"} and pickle.load(file)["grasp_penalty"] == 0.0


def test_every_cut_leaves_the_whole_steps(tmp_path):
    """Cut after each byte: all steps whose bytes are complete, the last one ended by a time limit."""
    _, path = write(tmp_path, steps=3)
    data, ends = path.read_bytes(), []
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        ends.append(len(read_episode(path)))
    assert sorted(set(ends)) == [0, 1, 2, 3] and ends == sorted(ends) and ends[-2:] == [2, 3]
    path.write_bytes(data[:-1])
    last = read_episode(path)[-1]
    assert last["dones"] is True and last["masks"] == 1.0


@pytest.mark.parametrize(
    "content, message",
    [
        (b"no gzip at all", "damaged after 0 records"),
        (gzip.compress(pickle.dumps([1])), "holds a list"),
        (gzip.compress(pickle.dumps({"observations": {}})) + gzip.compress(pickle.dumps({"a": 1})), "step 0 has"),
        (gzip.compress(pickle.dumps(print)), "nothing of it was run"),
    ],
    ids=["no gzip", "no step", "two kinds of steps", "a function"],  # not the content: gzip puts the time into it
)
def test_other_files_are_refused_by_name(content, message, tmp_path):
    path = tmp_path / "000000.pkl.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="000000.pkl.gz: .*") as error:
        read_episode(path)
    assert message in str(error.value)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    _, path = write(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(WriteError, match="000005.pkl.gz cannot be written: No space left on device; .*--overwrite"):
        EpisodeWriter(tmp_path, ["image"]).start(5, {"image": np.zeros((2, 2, 3), np.uint8)})

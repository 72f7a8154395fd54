"""The demos' encoding in a file beside them: the same run with and without it, and every file that must not be used."""

import os
import pickle

import numpy as np
import pytest
import torch

import train_hybrid
import train_offline
from pytorch_serl.agents.base import PixelAgent
from pytorch_serl.data.demos import read_demos
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.networks.resnet import ObservationEncoder
from pytorch_serl.training import build, demo_cache
from pytorch_serl.training.run import seed_all
from pytorch_serl.utils.files import load_checkpoint
from tests.runs import FIXED, command, make_demos

KEYS = ["image", "wrist"]


class Eye(torch.nn.Module):
    """A backbone that is quick: sees 4 x 4 pixels."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 512 * 16).view(512, 16))

    def forward(self, images):
        return images[:, 5:9, 6:10].float().sum(-1).reshape(-1, 1, 16) / 765 + self.weight


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(demo_cache, "SMALLEST", 1)


@pytest.fixture
def backbone():
    return Eye()


@pytest.fixture
def path(tmp_path):
    return make_demos(tmp_path / "demos.pkl", episodes=3, length=3, keys=KEYS)


def filled(path, backbone, keep=True, seed=0, views=2, keys=KEYS):
    """A buffer with the demos, and the random numbers that come next."""
    demos = read_demos(path, keys, FIXED)
    agent = PixelAgent()  # all that encoding needs of one
    agent.image_keys, agent.state_dim, agent.device, agent.backbone = keys, 3, torch.device("cpu"), backbone
    agent.encoder = ObservationEncoder(keys, 3, dropout=0.0)
    buffer = ReplayBuffer(50, keys)
    seed_all(seed)
    build.add_demos(buffer, demos, agent, views, keep=keep)
    return buffer.export(), (torch.rand(3), np.random.rand(3))


def assert_same(one, other):
    (a, next_a), (b, next_b) = one, other
    assert a["counters"] == b["counters"] and a["tail"] == b["tail"]
    for part in ("columns", "frames"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][k], b[part][k]) and a[part][k].dtype == b[part][k].dtype for k in a[part])
    assert torch.equal(next_a[0], next_b[0]) and np.array_equal(next_a[1], next_b[1])


@pytest.fixture
def encoded(monkeypatch):
    """How many frames were encoded."""
    count = [0]
    real = build.to_storage

    def counting(*args):
        count[0] += 1
        return real(*args)

    monkeypatch.setattr(build, "to_storage", counting)
    return count


@pytest.mark.parametrize("views", [1, 2])
def test_the_buffer_is_the_same_bit_for_bit(views, path, backbone, encoded, capsys):
    without = filled(path, backbone, keep=False, views=views)
    assert os.listdir(path.parent) == ["demos.pkl"] and encoded == [12]
    assert_same(filled(path, backbone, views=views), without)
    file = path.parent / ".demos.pkl.encoded"
    assert sorted(os.listdir(path.parent)) == [".demos.pkl.encoded", "demos.pkl"] and encoded == [24]
    assert f"is kept in {file} ({12 * 2 * views * 512 * 16 * 2 / 1e6:.0f} MB)" in capsys.readouterr().out
    assert_same(filled(path, backbone, views=views), without)
    assert encoded == [24] and f"is read from {file}" in capsys.readouterr().out


def test_anything_else_is_encoded_anew_and_takes_the_files_place(path, backbone, encoded):
    def changed(**options):
        """Whether the file is not used; it is the right one afterwards."""
        before = encoded[0]
        made = filled(path, options.pop("backbone", backbone), **options)
        anew = encoded[0] > before
        assert os.listdir(path.parent).count(".demos.pkl.encoded") == 1 == len(os.listdir(path.parent)) - 1
        return anew, made

    filled(path, backbone)
    assert not changed()[0]
    other = Eye()
    other.load_state_dict(backbone.state_dict())
    assert not changed(backbone=other)[0]  # the same weights
    with torch.no_grad():
        other.weight[3, 3] += 1e-3
    assert changed(backbone=other)[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)  # adds in another order
    other_threads = changed()[0]
    torch.set_num_threads(threads)
    assert other_threads
    assert changed(seed=1)[0] and not changed(seed=1)[0]
    assert changed(views=3)[0]
    assert changed(keys=KEYS[::-1])[0] and changed(keys=KEYS[:1])[0]
    assert changed(views=1)[0] and not changed(views=1, seed=7)[0]  # no crop is drawn: the seed does not matter
    transitions = pickle.loads(path.read_bytes())
    transitions[4]["observations"]["wrist"][3, 3, 0] ^= 1
    path.write_bytes(pickle.dumps(transitions))
    assert changed(views=1)[0]
    assert_same(changed(views=1)[1], filled(path, backbone, views=1, keep=False))


DAMAGE = {
    "a bit": lambda data: data[:-5000] + bytes([data[-5000] ^ 1]) + data[-4999:],
    "a bit of the sum": lambda data: data.replace(b'"sha256": "', b'"sha256": "0', 1),
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "no header": lambda data: data[200:],
    "a list": lambda data: b"[]\n" + data,
    "no sum": lambda data: data.replace(b"sha256", b"sha257", 1),
    "nested": lambda data: b"[" * 990 + b"\n" + data,
    "only a header": lambda data: data[: data.index(b"\n") + 1],
    "all the bits": lambda data: data[: data.index(b"\n") + 1] + bytes(len(data) - data.index(b"\n") - 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_made_anew(name, path, backbone, encoded):
    without = filled(path, backbone)
    file = path.with_name(".demos.pkl.encoded")
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[name](whole))
    before = encoded[0]
    assert_same(filled(path, backbone), without)
    assert encoded[0] == before + 12 and file.read_bytes() == whole


def test_where_nothing_can_be_written_or_read_it_goes_on_silently(path, backbone, encoded, monkeypatch, capsys):
    without = filled(path, backbone, keep=False)
    file = path.with_name(".demos.pkl.encoded")
    file.mkdir()
    assert_same(filled(path, backbone), without)
    assert not list(file.iterdir()) and "encoding" not in capsys.readouterr().out
    file.rmdir()

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert_same(filled(path, backbone), without)
    with monkeypatch.context() as patch:
        patch.setattr(demo_cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2_000_000}))
        assert_same(filled(path, backbone), without)
    for name, size in (("LARGEST", 100_000), ("SMALLEST", 5_000_000)):
        with monkeypatch.context() as patch:
            patch.setattr(demo_cache, name, size)
            assert_same(filled(path, backbone), without)
    assert os.listdir(path.parent) == ["demos.pkl"] and "encoding" not in capsys.readouterr().out


def test_a_folder_that_only_others_may_write_to(path, backbone):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path.parent.chmod(0o500)
    try:
        filled(path, backbone)
        assert os.listdir(path.parent) == ["demos.pkl"]
    finally:
        path.parent.chmod(0o700)


def test_what_a_killed_run_was_writing_goes_and_what_another_one_writes_stays(path, backbone):
    gone, alive = (path.with_name(f"..demos.pkl.encoded.{number}.tmp") for number in (2**22 + 1, os.getppid()))
    gone.touch(), alive.touch()  # the first process's number is above any
    filled(path, backbone)
    assert not gone.exists() and alive.exists() and path.with_name(".demos.pkl.encoded").exists()


def test_several_files_and_own_episodes_have_one_beside_the_first(path, backbone, encoded):
    other = make_demos(path.with_name("more.pkl"), episodes=2, length=3, keys=KEYS, seed=3)
    filled([path, other], backbone)
    before = encoded[0]
    filled([path, other], backbone)
    assert encoded[0] == before and sorted(os.listdir(path.parent)) == [".demos.pkl.encoded", "demos.pkl", "more.pkl"]
    filled([other, path], backbone)
    assert encoded[0] > before


@pytest.mark.usefixtures("empty_home")
@pytest.mark.parametrize(
    "script, learner",
    [(train_hybrid, "inline"), pytest.param(train_hybrid, "process", marks=pytest.mark.slow), (train_offline, None)],
)
def test_a_run_is_the_same_with_the_file(script, learner, tmp_path, capfd):
    """Encoded in the learner's process, too."""
    long = learner == "process"  # which knows nothing of `however_small`
    demos = make_demos(tmp_path / "demos.pkl", episodes=5, length=40 if long else 4)
    options = {"demo_paths": demos, "image_keys": "image", "setup_mode": FIXED, "device": "cpu", "batch_size": 4}
    options |= {"views": 2, "max_steps": 2, "backbone": "random"}
    if learner:
        options |= {"env": "tests.expert_env:Simulated-v0", "learner": learner, "pretrain_steps": 2}
        options |= {"eval_episodes": 1, "buffer_capacity": 100, "training_starts": 100}
    said, runs = [], []
    for name in ("first", "second"):
        script.main(command(options | {"save_dir": tmp_path / name}))
        said.append(capfd.readouterr().out)
        runs.append(load_checkpoint(tmp_path / name / "best.pt")["modules"])
    assert "is kept in" in said[0] and "is read from" in said[1] and "is kept in" not in said[1]
    for module, state in runs[0].items():
        assert all(torch.equal(value, runs[1][module][key]) for key, value in state.items()), module

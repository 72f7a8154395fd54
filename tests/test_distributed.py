"""Training shared by torchrun's processes: the parameters that one process has, one writer, checkpoints, failures."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import train_offline
from pytorch_serl.scaling import torchrun
from pytorch_serl.utils.device import pick_device
from pytorch_serl.utils.files import load_checkpoint
from tests import distributed_worker as worker
from tests.runs import FIXED, ROOT, RUN_OUTPUTS, command, content, equal, metrics
from tests.test_classifier import picture

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
    pytest.mark.usefixtures("empty_home"),
]
SECONDS = 300  # until something that hangs is called so
CASES = [*worker.CASES, "classifier", "classifier frames"]
CASES += [name + worker.DOUBLE for name in CASES]
FEW = ["one arm", "one arm in double", "awac in double", "classifier in double"]
ROUNDED = ("trained backbone", "trained backbone once")  # in float32 rounding decides some of their steps; see below
OTHERS = [name for name in CASES if name not in (*FEW, *ROUNDED)]


def launch(script, *words, processes=2):
    """The command line of a script in several processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, str(ROOT / script), *map(str, words)]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run(script, *words, processes=2):
    line = launch(script, *words, processes=processes)
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=SECONDS)


def flat(tree, prefix=""):
    """The tensors of dicts and lists by name."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    found = {prefix: tree} if isinstance(tree, torch.Tensor) else {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}")
    return found


def assert_close(a, b, tolerance=1e-5, exceptions=1e-5):
    """Every entry within `tolerance`; a share of `exceptions` within ten times that.

    In float32 few gradients are as small as Adam's epsilon, and there rounding becomes a part of a step.
    """
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys() and a
    apart = {name: (a[name].double() - b[name].double()).abs() for name in a}
    worst = max(apart, key=lambda name: apart[name].max())
    beyond = sum(int((x > tolerance).sum()) for x in apart.values())
    assert beyond <= exceptions * sum(x.numel() for x in apart.values()), (worst, apart[worst].max(), beyond)
    assert apart[worst].max() <= tolerance * (10 if exceptions else 1), (worst, apart[worst].max())


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Some of the cases in two processes."""
    folder = tmp_path_factory.mktemp("shared")
    done = run("tests/distributed_worker.py", folder, *FEW, "drawn", "draws", "drift")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def assert_case_is_that_of_one_process(folder, name):
    together, alone = load_checkpoint(folder / f"{name}.pt"), worker.run_case(name)
    how = {"tolerance": 1e-9, "exceptions": 0.0} if name.endswith(worker.DOUBLE) else {}
    assert_close(together["state"]["modules"], alone["state"]["modules"], **how)
    assert_close(together["info"], alone["info"], 1e-4)
    assert torch.equal(together["rng"], alone["rng"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_the_parameters_are_those_of_one_process(name, shared):
    assert_case_is_that_of_one_process(shared[0], name)


@pytest.mark.slow
def test_only_the_first_process_runs_the_script_and_says_when_parameters_drift(shared):
    lines = shared[1].splitlines()
    assert lines[0].startswith("2 processes share every update")
    assert lines[1:-4] == [f"{name} done by process 0" for name in (*FEW, "drawn")]
    assert re.fullmatch(r"drifted: the parameters of torchrun's 2 processes differ by up to .*e-0\d, and.*", lines[-1])


@pytest.mark.slow
def test_each_process_draws_its_own_numbers(shared):
    """Dropout, noise and crops; the same ones again from the same state of the first process, as after --resume."""
    lines = [line.split()[1:] for line in shared[1].splitlines() if line.startswith("draws")]
    assert len(lines) == 3 and lines[0] == lines[2] != lines[1]
    mean, largest, next_mean, next_largest = map(float, lines[0])
    assert mean < largest and next_mean < next_largest and (mean, largest) != (next_mean, next_largest)
    together, alone = load_checkpoint(shared[0] / "drawn.pt"), worker.run_case("drawn")
    assert all(x.isfinite().all() for x in flat(together["state"]).values())
    apart = [(a - b).abs().max() for a, b in zip(*(flat(x["state"]["modules"]).values() for x in (together, alone)))]
    assert 1e-5 < max(apart) < 0.1


@pytest.mark.slow
def test_so_are_those_of_the_other_cases(tmp_path):
    done = run("tests/distributed_worker.py", tmp_path, *OTHERS)
    assert done.returncode == 0, done.stderr
    for name in OTHERS:
        assert_case_is_that_of_one_process(tmp_path, name)


@pytest.mark.slow
def test_a_trained_backbone_gets_the_gradients_of_one_process(tmp_path):
    """And takes its steps, but where the gradient is of rounding's size: Adam's step is as large there as elsewhere.

    Such steps then open other ReLUs, by chance, and thousands of entries follow; between one and two threads of one
    process it is the same. In float64 all agree (above).
    """
    name = "trained backbone once"
    done = run("tests/distributed_worker.py", tmp_path, name)
    assert done.returncode == 0, done.stderr
    together, alone = load_checkpoint(tmp_path / f"{name}.pt")["state"], worker.run_case(name)["state"]
    for module in ("online", "actor"):
        parameters = zip(together["modules"][module].values(), alone["modules"][module].values())
        states = [state["optimizers"][module]["state"].values() for state in (together, alone)]
        for (p, q), (a, b) in zip(parameters, zip(*states, strict=True), strict=True):
            a, b = (moment["exp_avg"] / (1 - 0.9) for moment in (a, b))  # after one step: the gradient
            rounding = 2e-5 * b.abs().max()
            assert (a - b).abs().max() <= rounding
            assert (p - q)[b.abs() > rounding].abs().max() <= 1e-5


# ---------------------------------------------------------------- the scripts


def offline(demos, out, **changes):
    options = {
        "demo_paths": demos,
        "image_keys": "image",
        "setup_mode": FIXED,
        "batch_size": 8,
        "views": 2,
        "save_dir": out,
        "device": "cpu",
        "max_steps": 20,
        "eval_every": 10,
    }
    return command(options | changes)


def hybrid(demos, out, **changes):
    options = {
        "env": "tests.tiny_env:TinyHuman-v0",
        "pretrain_steps": 5,
        "training_starts": 4,
        "learner": "inline",
        "max_steps": 12,
        "eval_every": 6,
        "eval_episodes": 1,
        "buffer_capacity": 100,
    }
    return offline(demos, out, **(options | changes))


def classify(folder, out, **changes):
    options = {
        "success_dir": folder / "success",
        "failure_dir": folder / "failure",
        "image_keys": "image",
        "output_dir": out,
        "batch_size": 4,
        "num_epochs": 3,
        "device": "cpu",
        "crop_views": 2,
        "dropout": 0,
    }
    return command(options | changes)


def agent_of(out):
    return content(out)["agent"]["modules"]


@pytest.mark.slow
def test_offline_checkpoints_go_from_one_process_to_two_and_back(demos, tmp_path):
    """Cloning alone draws nothing in its updates; the random state is then that of one process but for torch's."""
    once, there, back = (tmp_path / name for name in ("once", "there", "back"))
    train_offline.main(offline(demos, once, algo="bc"))
    train_offline.main(offline(demos, there, algo="bc", max_steps=10))
    done = run("train_offline.py", *offline(demos, there, algo="bc", resume=True))
    assert done.returncode == 0, done.stderr
    assert run("train_offline.py", *offline(demos, back, algo="bc", max_steps=10)).returncode == 0
    train_offline.main(offline(demos, back, algo="bc", resume=True))
    for out in (there, back):
        assert_close(agent_of(out), agent_of(once))
        states = [content(run)["rng"] | {"torch": None} for run in (out, once)]
        assert equal(*states)
        assert equal(content(out)["sampling"], content(once)["sampling"])
        assert metrics(out, "held_out_error") == pytest.approx(metrics(once, "held_out_error"), abs=1e-5)
    # one writer, one voice
    written = [file.name for file in there.iterdir()]
    assert set(written) >= RUN_OUTPUTS and sum(name.startswith("events.out") for name in written) == 2  # of two runs
    assert not [name for name in written if name.endswith(".tmp")]
    for text in ("settings:", "2 processes share every update", "transitions in memory", "Its success rate is not"):
        assert done.stdout.count(text) == 1
    assert done.stdout.count("update 20: held out error") == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_hybrid_training_acts_and_samples_in_one_process_and_goes_on_in_one(demos, tmp_path):
    """Its updates draw, so its parameters are others: what they learn from, and how much, are not."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    script = [sys.executable, str(ROOT / "train_hybrid.py")]
    subprocess.run([*script, *hybrid(demos, alone)], env=environment(), check=True, timeout=SECONDS)
    done = run("train_hybrid.py", *hybrid(demos, together))
    assert done.returncode == 0, done.stderr
    a, b = content(together), content(alone)
    assert a["step"] == b["step"] == 12 and a["progress"]["pretrained"] == b["progress"]["pretrained"] == 5
    assert equal(a["sampling"], b["sampling"])
    updates = [x["agent"]["optimizers"]["online"]["state"][0]["step"] for x in (a, b)]
    assert updates[0] == updates[1] > 5
    assert all(x.isfinite().all() for x in flat(agent_of(together)).values())
    assert len(list((together / "episodes").iterdir())) == 2
    subprocess.run(
        [*script, *hybrid(demos, together, max_steps=18, resume=True)], env=environment(), check=True, timeout=SECONDS
    )
    assert content(together)["step"] == 18
    done = run("train_hybrid.py", *hybrid(demos, tmp_path / "none", eval_ckpt=together / "best.pt"))
    assert done.returncode == 0 and done.stdout.count("deterministic:") == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_classifier_is_that_of_one_process(trained, tmp_path):
    rng = np.random.default_rng(0)
    for label, name in ((1, "success"), (0, "failure")):
        (tmp_path / name).mkdir()
        for episode in range(3):
            # noise for a trained backbone: on the square of `picture` even one process ends elsewhere with two threads
            images = [rng.integers(0, 256, (32, 32, 3), np.uint8) if trained else picture(rng, label) for _ in range(4)]
            frames = [{"observations": {"image": image}, "labels": label} for image in images]
            (tmp_path / name / f"{episode}.pkl").write_bytes(pickle.dumps(frames))
    alone, together = tmp_path / "alone", tmp_path / "together"
    changes = {"train_backbone": True, "num_epochs": 1} if trained else {}
    script = [sys.executable, str(ROOT / "train_classifier.py")]
    subprocess.run([*script, *classify(tmp_path, alone, **changes)], env=environment(), check=True, timeout=SECONDS)
    done = run("train_classifier.py", *classify(tmp_path, together, **changes))
    assert done.returncode == 0, done.stderr
    weights = [load_checkpoint(out / "last.pt")["classifier"]["weights"] for out in (alone, together)]
    assert_close(*weights)
    for name in ("train/loss", "val/loss"):
        assert metrics(together, name) == pytest.approx(metrics(alone, name), abs=1e-5)


REFUSED = {
    "rows": ("train_offline.py", offline, {"batch_size": 6}, "--batch_size 6 cannot be shared by 2 processes"),
    "learner": ("train_hybrid.py", hybrid, {"learner": "process"}, "--learner process learns in a process of its own"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_one_line_and_exit_code_2(name, demos, tmp_path):
    script, words, changes, message = REFUSED[name]
    done = run(script, *words(demos, tmp_path / "run", **changes))
    assert done.stderr.count("error: " + message) == 1 and "exitcode  : 2 " in done.stderr, done.stderr
    assert done.returncode != 0 and not (tmp_path / "run").exists()


def test_each_process_has_its_gpu(monkeypatch):
    """As far as it goes without GPUs: the device's name, and what is refused."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda:1")
    monkeypatch.setattr(torchrun, "world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    torchrun.check_options(torch.device("cuda:1"), 64)
    with pytest.raises(ValueError, match="--device cuda:0 is one GPU for 2 processes"):
        torchrun.check_options(torch.device("cuda:0"), 64)
    with pytest.raises(ValueError, match="cannot share the device mps"):
        torchrun.check_options(torch.device("mps"), 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="started 2 processes beside 1 GPU"):
        torchrun.check_options(torch.device("cuda:1"), 64)


# ---------------------------------------------------------------- ends


def left_running(mark):
    """Processes with `mark` in their command line."""
    found = []
    for folder in os.scandir("/proc"):
        try:
            line = open(f"{folder.path}/cmdline").read() if folder.name.isdigit() else ""
        except OSError:
            continue
        found += [folder.name] * (mark in line and folder.name != str(os.getpid()))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
@pytest.mark.parametrize("name", ["fail", "die", "own failure"])
def test_a_process_that_fails_leaves_no_other_waiting(name, tmp_path):
    started = time.monotonic()
    done = run("tests/distributed_worker.py", tmp_path, name)
    assert done.returncode != 0 and time.monotonic() - started < SECONDS / 2
    assert name == "die" or "ZeroDivisionError" in done.stderr
    assert not left_running(str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_once_and_ends_all(number, demos, tmp_path):
    out = tmp_path / "run"
    line = launch("train_offline.py", *offline(demos, out, max_steps=100_000, eval_every=5))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=environment(), **streams) as process:
        while not (out / "learning_curve.png").exists() and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=SECONDS)
    assert stdout.count("is saved in") == 1, stderr
    step = int(re.search(r"interrupted: update ([\d,]+) is saved", stdout)[1].replace(",", ""))
    assert content(out)["step"] == step >= 5
    assert not left_running(str(out))
    train_offline.main(offline(demos, out, max_steps=step + 2, eval_every=5, resume=True))
    assert content(out)["step"] == step + 2

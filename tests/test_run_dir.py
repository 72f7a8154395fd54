"""One run per directory, signals that save, memory that fits: what concerns a run from outside."""

import errno
import fcntl
import json
import multiprocessing as mp
import os
import pty
import signal
import subprocess
import sys
import time
import types
from multiprocessing import heap

import pytest

import export_policy
import record_demos
import train_classifier
import train_hybrid
import train_offline
from pytorch_serl.scaling import processes
from pytorch_serl.scaling.processes import SharedParameters
from pytorch_serl.training import run
from pytorch_serl.training.run import LEARNER_LOCK, RUN_LOCK, hold_run_dir, prepare_run_dir, save_settings
from pytorch_serl.utils.files import RunInUse, wait_for_lock
from pytorch_serl.utils.signals import STOP_SIGNALS, catch_stops, uninterrupted
from tests import test_hybrid, test_offline
from tests.runs import ROOT, command, content, refused

pytestmark = pytest.mark.usefixtures("empty_home")
IN_USE = "is in use by another run; stop it, or name another directory"


@pytest.fixture
def in_use(tmp_path):
    """A directory with a living run in it, which is writing last.pt."""
    folder = tmp_path / "run"
    with hold_run_dir(folder):
        (folder / f".last.pt.{os.getppid()}.tmp").touch()
        yield folder
        assert (folder / f".last.pt.{os.getppid()}.tmp").exists()
        assert {file.name[:5] for file in folder.iterdir()} == {".run.", ".last"}


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}, {"learner": "process"}])
def test_a_second_hybrid_run_is_refused(options, in_use, demos, capsys):
    refused(train_hybrid, capsys, IN_USE, test_hybrid.words(demos, in_use, **options))


def test_every_script_is_refused(in_use, demos, capsys):
    for options in ({}, {"resume": True}, {"overwrite": True}):
        refused(train_offline, capsys, IN_USE, test_offline.words(demos, in_use, **options))
    refused(train_hybrid, capsys, IN_USE, test_hybrid.words(demos, in_use, eval_ckpt="best.pt"))
    refused(export_policy, capsys, IN_USE, ["--ckpt", str(in_use / "best.pt")])
    words = ["--success_dir", "a", "--failure_dir", "b", "--image_keys", "image", "--output_dir", str(in_use)]
    script = types.SimpleNamespace(main=lambda words: train_classifier.main(train_classifier.parse_args(words)))
    for more in ([], ["--resume"], ["--overwrite"]):
        refused(script, capsys, IN_USE, words + more)


def test_input_errors_leave_nothing_behind(tmp_path, capsys):
    out = tmp_path / "a/b"
    refused(train_offline, capsys, "no such file", test_offline.words("none.pkl", out))
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    refused(train_offline, capsys, "is a file; wanted a directory", test_offline.words("none.pkl", tmp_path / "file"))


def test_a_run_that_ended_leaves_its_directory_free(tmp_path):
    for _ in range(2):
        with hold_run_dir(tmp_path), pytest.raises(SystemExit), hold_run_dir(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / RUN_LOCK).touch()  # of a run that was killed
    with hold_run_dir(tmp_path):
        pass
    with hold_run_dir(None):
        pass
    temporary = tmp_path / f".last.pt.{os.getppid()}.tmp"  # whoever has this number now: it was a run that is gone
    temporary.touch()
    with hold_run_dir(tmp_path):
        prepare_run_dir(tmp_path, resume=False, overwrite=True)
    assert not temporary.exists()


def test_overwrite_takes_the_frames_that_a_classifier_called_success(tmp_path):
    """They would lie among the next run's, and be trained on as its false successes."""
    folder = tmp_path / "called_success"
    folder.mkdir()
    for name in ("000003_0.990.png", "000003_0.990.pkl"):
        (folder / name).touch()
    prepare_run_dir(tmp_path, resume=False, overwrite=True)
    assert not list(folder.glob("*"))


def test_a_resumed_runs_settings_name_the_backbone_that_it_began_with(tmp_path):
    for resume, backbone, wanted in ((False, "a.pt", "a.pt"), (True, "b.pt", "a.pt"), (False, "b.pt", "b.pt")):
        save_settings(tmp_path, {"resume": resume, "backbone": backbone, "lr": 0.1})
        assert json.loads((tmp_path / "settings.json").read_text())["backbone"] == wanted
    (tmp_path / "settings.json").write_text("{]")
    save_settings(tmp_path, {"resume": True, "backbone": "c.pt"})
    assert json.loads((tmp_path / "settings.json").read_text())["backbone"] == "c.pt"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_stopped_before_its_first_checkpoint_is_started_anew(resume, tmp_path):
    for name in ("settings.json", "metrics.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"stopped before its first checkpoint.*start anew with --overwrite, or name"):
        prepare_run_dir(tmp_path, resume=resume, overwrite=False)
    prepare_run_dir(tmp_path, resume=False, overwrite=True)


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_recording_is_taken_for_no_run_and_a_run_for_no_recording(options, tmp_path, demos, capsys):
    """--overwrite would delete the other's episodes."""
    episode = tmp_path / "episodes/000000.pkl.gz"
    episode.parent.mkdir()
    episode.write_bytes(b"recorded")
    refused(
        train_offline, capsys, "holds a recording of record_demos.py", test_offline.words(demos, tmp_path, **options)
    )
    (tmp_path / "settings.json").write_text("{}")
    words = command({"output_dir": tmp_path} | options)
    refused(record_demos, capsys, "holds the run of a training script; name another --output_dir", words)
    assert episode.read_bytes() == b"recorded"
    prepare_run_dir(tmp_path, resume=False, overwrite=True)
    assert not episode.exists()


def test_a_lock_file_that_its_run_took_along_locks_nothing(tmp_path, monkeypatch):
    path, tried = tmp_path / RUN_LOCK, []

    def remove_once(file, seconds):
        if not tried:
            path.unlink()
        tried.append(file)

    monkeypatch.setattr(run, "wait_for_lock", remove_once)
    with hold_run_dir(tmp_path):
        assert len(tried) == 2 and os.path.samestat(os.fstat(tried[1].fileno()), os.stat(path))


def test_the_learner_of_a_killed_run_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "LOCK_SECONDS", 0.3)
    with open(tmp_path / LEARNER_LOCK, "w") as learner:
        fcntl.flock(learner, fcntl.LOCK_EX)
        with pytest.raises(SystemExit), hold_run_dir(tmp_path):
            pass
        assert IN_USE in capsys.readouterr().err
        with monkeypatch.context() as patch:
            patch.setattr(time, "sleep", lambda seconds: fcntl.flock(learner, fcntl.LOCK_UN))
            with hold_run_dir(tmp_path):
                pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="without locks: see to it that no two runs"), hold_run_dir(tmp_path):
        living, dead = (tmp_path / f".last.pt.{pid}.tmp" for pid in (os.getppid(), 2**22 + 1))
        living.touch(), dead.touch()
        prepare_run_dir(tmp_path, resume=False, overwrite=True)
        assert living.exists() and not dead.exists()
    with open(tmp_path / LEARNER_LOCK, "w") as file, pytest.warns(UserWarning, match="without locks"):
        wait_for_lock(file, 0)


def test_a_learner_in_use_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LOCK_SECONDS", 0.1)
    said = []
    with open(tmp_path / LEARNER_LOCK, "w") as other:
        wait_for_lock(other, 0)
        replies, work = types.SimpleNamespace(send=said.append), {"state": b"", "device": "cpu", "threads": 1}
        processes.serve(None, replies, None, settings={"save_dir": tmp_path}, **work)
    ((name, error),) = said
    assert name == "error" and isinstance(error, RunInUse) and IN_USE in str(error)


# ---------------------------------------------------------------- signals


@pytest.fixture
def signals():
    """What the process had for each signal comes back."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_signal_interrupts_and_lets_a_block_finish(number, signals):
    catch_stops()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    catch_stops()
    finished = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(number)
        finished = True
    assert finished


def test_a_second_hangup_stops_no_saving(signals):
    """The kernel and the shell both send one."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    catch_stops()
    saved = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGHUP), signal.raise_signal(signal.SIGHUP)
        saved = True
    signal.raise_signal(signal.SIGHUP)
    assert saved


def test_nohup_is_left_alone(signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    catch_stops()
    with uninterrupted():
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)


def test_a_background_run_of_a_shell_script_sees_ctrl_c(signals, capsys):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    catch_stops()
    assert "SIGINT was ignored when this run was started" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    catch_stops()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["inline", "process"])
def test_a_broken_connection_loses_nothing(learner, demos, tmp_path):
    """The terminal of a run is closed: it saves, although it has nowhere left to print to."""
    out = tmp_path / "out"
    options = {"env": "tests.tiny_env:Tiny-v0", "learner": learner, "max_steps": 100_000, "stop_at": 1.0}
    line = [sys.executable, str(ROOT / "train_hybrid.py"), *test_hybrid.words(demos, out, eval_every=10**6, **options)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ours, theirs = pty.openpty()
    code = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *line], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    end = time.monotonic() + 120
    while len(list(out.glob("episodes/*"))) < 3:
        assert process.poll() is None and time.monotonic() < end
        try:
            os.read(ours, 2**16)
        except BlockingIOError:
            time.sleep(0.1)
    os.close(ours)
    assert process.wait(timeout=60) == 130
    assert content(out)["step"] > 0


# ---------------------------------------------------------------- shared memory


def test_parameters_need_no_room_in_dev_shm(monkeypatch):
    """64 MB in most containers."""
    small = types.SimpleNamespace(f_bavail=0, f_frsize=4096)
    monkeypatch.setattr(heap.os, "statvfs", lambda path: small)
    shared = SharedParameters(1000, mp.get_context("spawn"))
    assert shared.slots.shape == (2, 1000) and not shared.slots.any()


def test_no_room_anywhere_is_one_line(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    context = types.SimpleNamespace(RawArray=full)
    with pytest.raises(ValueError, match=r"no room for the 8 MB .*--shm-size=1g, or give --learner inline"):
        SharedParameters(1_000_000, context)

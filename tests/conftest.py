"""Fixtures that several test files use."""

import signal

import pytest

from tests.runs import make_demos


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Tiny demos of the fixed-gripper mode."""
    return make_demos(tmp_path_factory.mktemp("demos") / "demos.pkl")


@pytest.fixture
def empty_home(monkeypatch, tmp_path):
    """No published backbone at home, and an empty working directory; the scripts' signal handlers are undone."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def ctrl_c_interrupts():
    """Also where the tests run in a shell's background, which ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

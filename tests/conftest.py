"""Fixtures that several test files use, and what a run of the tests says that it left out."""

import os
import re
import signal
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.runs import make_demos

# matplotlib lists the fonts once, not for each test that has an empty home
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache/matplotlib"))


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


def pytest_terminal_summary(terminalreporter):
    """What was left out, and the command that brings it: the requirements file that the reason of a skip names."""
    skipped = {report.nodeid: report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])}
    lines = left_out(skipped)
    if terminalreporter.config.option.markexpr == "not slow":
        lines.append("slow tests: ./run_tests.sh -m slow")
    if lines:
        terminalreporter.section("left out")
        terminalreporter.write_line("\n".join(lines))


def left_out(skipped):
    """Lines about skipped tests, a dict of test (or whole file) -> reason."""
    what = defaultdict(list)
    for test, reason in skipped.items():
        extra = re.search(r"requirements/[\w-]+\.txt", reason)
        bring = f"{sys.executable} -m pip install -r {extra.group()}" if extra else reason.removeprefix("Skipped: ")
        what[bring].append(test)
    return [f"{_count(tests)}: {bring}" for bring, tests in what.items()]


def _count(tests):
    files = [test for test in tests if "::" not in test]
    single = len(tests) - len(files)
    return " and ".join([f"all of {file}" for file in files] + [f"{single} test{'s' * (single > 1)}"] * bool(single))

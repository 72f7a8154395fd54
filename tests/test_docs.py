"""README, CONTRIBUTING and docs/: short enough, links that lead somewhere, commands that the scripts understand."""

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from pytorch_serl.data.demos import read_demos
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.training import build
from pytorch_serl.training.backbone import find_backbone
from tests.conftest import left_out
from tests.runs import ROOT, record

READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [page.name for page in PAGES]
MADE_BY_THE_READER = {"my_robot.py", "robot_loop.py"}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page):
    """The words of each command of the page's bash blocks, without comments, variables and `torchrun ... script`."""
    for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        for part in re.split(r" && ", line):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def script_and_options(words):
    """A command of `python FILE`, `python -m MODULE` or `torchrun`, else None."""
    if words[0] == "torchrun":
        first = next(i for i, word in enumerate(words) if word.endswith(".py"))
    elif words[0].rpartition("/")[2].startswith("python"):
        first = 2 if words[1] == "-m" else 1
    else:
        return None
    return words[first], words[first + 1 :]


def test_the_readmes_are_for_a_reader_and_in_step():
    english, chinese = READMES
    for page in READMES:
        assert page.stat().st_size <= 12 * 1024, f"{page.name} is for a reader: move something to docs/"
    assert list(commands(english)) == list(commands(chinese))
    python = [[re.sub(r" *#.*", "", block) for block in blocks(page, "python")] for page in READMES]
    assert python[0] == python[1]
    assert shape(english) == shape(chinese)


def test_the_readme_s_python_runs(tmp_path):
    """On what the quick-start and `train_classifier.py` leave behind."""
    path = record("single-arm-learned-gripper", tmp_path / "data", num_demos=2, num_classifier_episodes=0)
    demos = read_demos(path, ["image", "wrist"], "single-arm-learned-gripper")
    settings = {"lr": 3e-4, "discount": 0.95, "device": "cpu", "backbone": find_backbone()[0], "trainable": False}
    for folder in ("runs/quickstart", "classifier_ckpt"):
        (tmp_path / folder).mkdir(parents=True)
    build.make_agent(demos, **settings).save_policy(tmp_path / "runs/quickstart/best.pt")  # with all its branches
    RewardClassifier(["image"], device="cpu").save(tmp_path / "classifier_ckpt/best.pt")
    obs = "import numpy as np; obs = {'image': np.zeros((128, 128, 3), np.uint8)}"
    script = "\n".join([obs, *blocks(READMES[0], "python"), "print(action.shape, len(buffer))"])
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["(7,)", str(len(demos.transitions))]


def shape(page):
    """Levels of the headings, number of cells in each row of a table, and where links lead, in order."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    rows = [(line.count("#") if line.startswith("#") else line.count("|")) for line in text.splitlines()]
    links = [link for link in re.findall(r"\]\((.*?)\)", text) if not link.startswith("README")]
    return [count for count in rows if count], sorted(links)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_that_are_named_are_there(page):
    rooms = [ROOT, ROOT / "docs", ROOT / "tests", ROOT / "benchmarks", ROOT / "pytorch_serl"]
    for name in re.findall(r"`(?:\./)?([\w./-]+\.(?:py|sh|ipynb|txt))`", page.read_text(encoding="utf-8")):
        assert name in MADE_BY_THE_READER or any((room / name).is_file() for room in rooms), name


def test_each_page_is_linked_from_the_readme():
    text = READMES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[3:] if f"](docs/{page.name})" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_understood(page, capsys):
    for words in commands(page):
        for name in re.findall(r"requirements[\w/-]*\.txt", " ".join(words)):
            assert (ROOT / name).is_file(), name
        found = script_and_options(words)
        if found is None:
            continue
        script, options = found
        is_file = script.endswith(".py")
        assert (ROOT / script).is_file() if is_file else find_spec(script), words
        if "/" in script or not (is_file or script.startswith("pytorch_serl.")):
            continue  # benchmarks and examples find each other when they run; pip and pytest have no parse_args
        try:
            import_module(script.removesuffix(".py")).parse_args(options)
        except SystemExit:
            pytest.fail(f"{page.name}: {' '.join(words)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_options_that_are_named_exist(page):
    sources = [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("pytorch_serl/**/*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    known = {"help", *re.findall(r"\"--(\w+)\"", code)}
    named = re.findall(r"`--(?:no-)?(\w+)", page.read_text(encoding="utf-8"))
    assert set(named) <= known, set(named) - known


def test_what_the_tests_left_out_is_said_with_the_command_that_brings_it():
    lines = left_out(
        {
            "tests/test_ray.py": "Skipped: pip install -r requirements/ray.txt",
            "tests/test_panda.py::test_a": "Skipped: gym-hil is not installed: pip install -r requirements/sim.txt",
            "tests/test_panda.py::test_b": "Skipped: gym-hil is not installed: pip install -r requirements/sim.txt",
            "tests/test_agents.py::test_c": "Skipped: there is no CUDA device",
        }
    )
    for line, what, extra in zip(lines, ("all of tests/test_ray.py", "2 tests"), ("ray", "sim")):
        assert line.startswith(f"{what}: ") and line.endswith(f" -m pip install -r requirements/{extra}.txt")
    assert lines[2:] == ["1 test: there is no CUDA device"]

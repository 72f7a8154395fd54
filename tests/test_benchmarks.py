"""The benchmarks' helpers and commands on tiny work."""

import importlib.util
import json
import os
import sys

import numpy as np
import pytest
import torch

from tests.runs import ROOT, refused

sys.path.insert(0, str(ROOT / "benchmarks"))

import growth  # noqa: E402
import measure  # noqa: E402
import peer  # noqa: E402
import speed  # noqa: E402
import tasks  # noqa: E402
import timing  # noqa: E402
import work  # noqa: E402

TINY = [
    "--batch_sizes",
    "2",
    "--cameras",
    "1",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--transitions",
    "256",
    "--repeats",
    "3",
    "--seconds",
    "0.01",
]


class Owner:
    def __init__(self, clock):
        self.clock = clock

    def outer(self):
        self.clock[0] += 1
        self.inner()
        self.clock[0] += 2

    def inner(self):
        self.clock[0] += 10


def test_stages_exclude_those_inside_and_add_up_to_the_whole():
    clock = [0.0]
    owner = Owner(clock)
    stages = timing.Stages(lambda: np.array([clock[0], 2 * clock[0]]))
    with stages.whole([(owner, "outer", "a"), (owner, "inner", "b")]):
        clock[0] += 100
        owner.outer()
        owner.inner()
        clock[0] += 200
    assert {name: total.tolist() for name, total in stages.totals.items()} == {
        "a": [3.0, 6.0],
        "b": [20.0, 40.0],
        timing.OTHER: [300.0, 600.0],
    }
    assert "outer" not in vars(owner) and owner.outer.__func__ is Owner.outer
    with pytest.raises(AttributeError, match="missing"), stages.whole([(owner, "outer", "a"), (owner, "missing", "b")]):
        pass
    assert "outer" not in vars(owner)


def test_stages_are_undone_after_an_error():
    owner = Owner([0.0])
    stages = timing.Stages(lambda: np.array(owner.clock[0]))
    with pytest.raises(ZeroDivisionError), stages.whole([(owner, "outer", "a")]):
        owner.outer()
        raise ZeroDivisionError
    assert stages.totals["a"] == 13.0 and "outer" not in vars(owner)


def test_work_is_timed_in_turn_and_spread():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = timing.alternate(works, timing.make_clock(), repeats=5, seconds=0.0)
    assert order == ["a", "b"] * timing.MIN_REPEATS and taken["a"].shape == (timing.MIN_REPEATS, 2)
    figures = timing.spread(np.column_stack([np.arange(101.0), np.full(101, 7.0)]))
    assert figures["wall"] == {"median": 50.0, "p10": 10.0, "p90": 90.0, "p99": 99.0}
    assert figures["cpu"]["p99"] == 7.0 and figures["n"] == 101


@pytest.mark.parametrize(
    "backbone, passes, absent",
    [("stored", (0, 0), {"augment", "backbone"}), ("frozen", (2, 0), set()), ("trainable", (3, 1), set())],
)
def test_every_stage_of_an_update_is_found(backbone, passes, absent):
    agent = work.make_agent(backbone, 1, torch.device("cpu"))
    learner = work.make_learner(agent, backbone, transitions=20)
    plan = {"repeats": 3, "seconds": 0.01}
    result = measure.measure_update(agent, learner, 2, plan)
    assert set(result["stages"]) == {*work.STAGES, timing.OTHER} - absent
    assert tuple(result["passes"].values()) == passes
    parts = sum(stage["cpu"]["median"] for stage in result["stages"].values())
    assert parts == pytest.approx(result["whole_by_stage"]["cpu"]["median"], rel=0.2)
    assert result["gflop"]["encode"] > 0 and result["gflop"]["optimiser"] == 0
    assert (result["gflop"].get("backbone", 0) > 0) == (backbone != "stored")
    assert vars(agent).keys().isdisjoint({"_prepare", "_encode"}) and torch.Tensor.backward.__name__ == "backward"


@pytest.mark.slow
def test_tables_and_json(tmp_path, capsys):
    assert speed.main([*TINY, "--backbones", "stored", "--json", str(tmp_path / "speed.json")]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in row] for row in rows]
    heads = [row for row in rows if row[0] in ("backbone", "stored") and row[1] == "cameras"]
    assert len(heads) == 5 and "of limit" in heads[0] and heads[1][-3:] == [timing.OTHER, "sum", "whole"]
    assert [row[0] for row in rows if row[1] == "1"] == ["stored"] * 4 + ["features"]
    report = json.loads((tmp_path / "speed.json").read_text())
    assert {"hardware", "versions", "settings", "results"} <= report.keys() and report["versions"]["torch"]
    buffer, act, update = report["results"]
    assert [buffer["part"], act["part"], update["part"]] == ["buffer", "act", "update"]
    assert ("act_beside_learner" in act) == ((os.cpu_count() or 1) > 1)
    assert update["whole"]["n"] == 3 and update["matrix_gflops"]["cpu"] > 0


def test_buffer():
    plan = {"transitions": 256, "seconds": 0.01}
    features, frames = (measure.measure_buffer(storage, 1, plan) for storage in ("features", "frames"))
    assert features["computed_bytes_per_transition"] == pytest.approx(512 * 16 * 2 * 1.01 + 133, rel=0.01)
    assert frames["computed_bytes_per_transition"] == pytest.approx(128 * 128 * 3 * 1.01 + 133, rel=0.01)
    assert frames["sample_and_crop"]["n"] >= 3 and "sample_and_crop" not in features


def test_what_is_slow_on_a_cpu_is_left_out_unless_asked_for():
    plans = speed.make_plans(speed.parse_args(["--device", "cpu", "--threads", "1"]))
    assert [plan["left_out"] for plan in plans] == [[["trainable", 256]]]
    plans = speed.make_plans(speed.parse_args(["--device", "cpu", "--threads", "1", "--slow"]))
    assert [plan["left_out"] for plan in plans] == [[]]


@pytest.mark.parametrize(
    "script, command, message",
    [
        (speed, ["--batch_sizes", "3"], "--batch_sizes is [3]; wanted even numbers"),
        (speed, ["--cameras", "0"], "--cameras is [0]; wanted 1 or more"),
        (speed, ["--threads", "100000"], "--threads is [100000]; wanted 1 to"),
        (speed, ["--repeats", "2"], "--repeats is 2; wanted 3 or more"),
        (speed, ["--json", "nowhere/x.json"], "--json is nowhere/x.json; wanted a file in a directory that exists"),
        (speed, ["--device", "tpu"], "device 'tpu' is not usable here"),
        (speed, ["--backbones", "none"], "invalid choice: 'none'"),
        (growth, [], "--output_dir"),
        (growth, ["--output_dir", "new", "--axes", "all"], "invalid choice: 'all'"),
        (peer, [], "--lerobot_python"),
        (peer, ["--lerobot_python", "nowhere"], "--lerobot_python is nowhere; wanted a Python interpreter"),
        (peer, ["--lerobot_python", sys.executable, "--pairs", "1"], "--pairs is 1; wanted 3 or more"),
    ],
)
def test_refused(script, command, message, capsys):
    refused(script, capsys, message, command)


@pytest.mark.slow
@pytest.mark.parametrize("axis, values", [("fill", (256, 4096)), ("ensemble", (1, 10))])
def test_growth(axis, values, tmp_path, monkeypatch):
    label, _, timed = growth.AXES[axis]
    monkeypatch.setattr(growth, "AXES", {axis: (label, values, timed)})
    monkeypatch.setattr(os, "environ", dict(os.environ))
    growth.main(["--output_dir", str(tmp_path), "--axes", axis, "--seconds", "0.2"])
    first, last = json.loads((tmp_path / "growth.json").read_text())["points"]
    assert (first["value"], last["value"]) == values and 0 < first["ms"]["p10"] <= first["ms"]["p90"]
    assert "mb" not in first or 0 < first["mb"] < last["mb"]
    assert (tmp_path / f"growth_{axis}.png").stat().st_size > 1000


@pytest.mark.slow
def test_sides_are_timed_in_turn():
    plan = {"backbone": "stored", "cameras": 1, "batch_sizes": [2], "threads": 1, "transitions": 20}
    side = peer.Side("our", sys.executable, "peer_ours.py", plan)
    try:
        works = peer.compare(side, side, pairs=3)
    finally:
        side.close()
    assert set(works) == {"update 2", "sample and update 2", "sample 256", "act"}
    assert works["update 2"]["ratio"]["n"] == 3 and works["act"]["ours"]["cpu"]["median"] > 0
    assert side.process.returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("lerobot") is not None, reason="LeRobot is installed here")
def test_an_environment_without_lerobot_is_named(capfd):
    with pytest.raises(SystemExit, match="LeRobot's process ended with exit code 1"):
        peer.Side("LeRobot", sys.executable, "peer_lerobot.py", {"threads": 1})
    assert "No module named 'lerobot'" in capfd.readouterr().err


def test_a_run_of_a_task_becomes_json_and_a_row(tmp_path, monkeypatch, capsys):
    """A training script that writes what the real one does; what is there is not trained again."""
    script = tmp_path / "train.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--save_dir') + 1])\n"
        "out.mkdir()\n"
        "rates = [(0, 0.7, 0.6), (510, 0.5, 0.5), (1020, 0.94, 0.9), (1500, 0.96, 1.0)]\n"
        "rows = [{'step': s, 'eval_success': e, 'eval_sampled': p, 'minutes': s / 500} for s, e, p in rates]\n"
        "rows.insert(2, {'step': 900, 'helped_steps': 0.25})\n"
        "(out / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\\n' for row in rows))\n"
        "(out / 'settings.json').write_text(json.dumps({'batch_size': 32, 'seed': 3}))\n"
        "final = {'deterministic': {'successes': 97, 'episodes': 100}, 'sampled': {'successes': 95, 'episodes': 100}}\n"
        "(out / 'evaluation.json').write_text(json.dumps(final))\n"
    )
    (tmp_path / "demos_panda").mkdir()
    (tmp_path / "demos_panda/demos.pkl").touch()
    words = ["--tasks", "panda", "--methods", "hybrid", "--seeds", "3", "--output_dir", tmp_path, "--runs", tmp_path]
    monkeypatch.setattr(sys, "argv", ["tasks.py", *map(str, words)])
    with monkeypatch.context() as patch:
        patch.setitem(tasks.METHODS, "hybrid", ("hybrid, scripted human", script, []))
        tasks.main()
    capsys.readouterr()
    tasks.main()  # by the real script, which would refuse these demos
    run = json.loads((tmp_path / "panda_hybrid_3.json").read_text())
    assert run["seed"] == 3 and run["settings"] == {"batch_size": 32}
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:-1]]
    wanted = ["panda", "hybrid, scripted human", "3", "97 of 100 (92% to 99%)", "95 of 100", "1,500", "1,020", "1,500"]
    assert row == [*wanted, "50% of 70%", "25%", "3.0"] and len(tasks.HEAD) == len(row)


def test_curves_of_seeds_of_unlike_length_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    evaluations = [{"step": step, "eval_success": rate} for step, rate in ((0, 0.7), (510, 0.9), (990, 1.0))]
    run = {"task": "panda", "method": "hybrid", "final": {"deterministic": [97, 100]}}
    runs = [run | {"evaluations": evaluations[:n]} for n in (2, 3)] + [run | {"method": "clone", "evaluations": []}]
    tasks.draw(runs, tmp_path / "panda.png")
    picture = imread(tmp_path / "panda.png")[..., :3]
    assert (np.ptp(picture, axis=-1) > 0.1).mean() > 0.005  # the line and its band are coloured

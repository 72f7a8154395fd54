"""What LeRobot's HIL-SERL takes for the work that ours does, timed in turn with it on this machine.

    python -m venv lerobot-venv && lerobot-venv/bin/python -m pip install 'lerobot[hilserl]==0.6.*'    # Python 3.12
    python benchmarks/peer.py --lerobot_python lerobot-venv/bin/python

Each side is a process of its own, in its own environment; one works while the other waits, A B A B. Prints the times
and the ratio of each pair, median and spread. docs/performance.md says what is compared. Nothing is written but
--json's file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import work  # noqa: E402
from speed import environment, hardware, number, show_machine, table, versions  # noqa: E402
from timing import CLOCKS, spread  # noqa: E402

from pytorch_serl.training.run import Parser, run_script  # noqa: E402

LEROBOT_BACKBONE = {"stored": "frozen", "frozen": "frozen", "trainable": "trainable"}  # it stores frames only
TRANSITIONS = 600  # in each buffer of either side


def parse_args(argv=None):
    cores = os.cpu_count() or 1
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--lerobot_python", required=True, help="interpreter of an environment with lerobot[hilserl]")
    parser.add_argument(
        "--backbones",
        nargs="+",
        choices=work.BACKBONES,
        default=["stored", "trainable"],
        help="ours; stored and frozen are both compared with LeRobot's frozen one",
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[64], help="transitions per update")
    parser.add_argument("--cameras", nargs="+", type=int, default=[1], help="numbers of cameras")
    parser.add_argument("--threads", type=int, default=1, help="of either side")
    parser.add_argument("--pairs", type=int, default=5, help="of each work")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of the table; cpu: CPU seconds of all threads")
    parser.add_argument("--json", type=Path, help="write every figure here, both clocks")
    args = parser.parse_args(argv)
    sizes = args.batch_sizes
    parser.require(
        args,
        {
            "lerobot_python": (Path(args.lerobot_python).is_file(), "a Python interpreter"),
            "batch_sizes": (
                min(sizes) >= 2 and max(sizes) <= 2 * TRANSITIONS and not any(size % 2 for size in sizes),
                f"even numbers up to {2 * TRANSITIONS}",
            ),
            "cameras": (min(args.cameras) >= 1, "1 or more each"),
            "threads": (1 <= args.threads <= cores, f"1 to {cores}, the cores here"),
            "pairs": (args.pairs >= 3, "3 or more"),
            "json": (args.json is None or args.json.absolute().parent.is_dir(), "a file in a directory that exists"),
        },
    )
    return args


class Side:
    """One side's process.

    Args:
        name: for messages.
        python: its interpreter.
        script: in this directory.
        plan: what `script` takes.
    """

    def __init__(self, name, python, script, plan):
        self.name = name
        self.process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / script), json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(plan["threads"]),
        )
        self.facts = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.name}'s process ended with exit code {self.process.wait()}, see above")
        return json.loads(line)

    def time(self, name):
        """Seconds that the work of this name takes, by clock."""
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return [answer[clock] for clock in CLOCKS]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(ours, theirs, pairs):
    """Time each work of both sides in turn; returns spreads of (pairs, 2) seconds and of their ratios, by work."""
    results = {}
    for name in ours.facts["works"]:
        rows = np.array([[ours.time(name), theirs.time(name)] for _ in range(pairs)])  # (pairs, 2 sides, 2 clocks)
        results[name] = {
            "ours": spread(rows[:, 0]),
            "lerobot": spread(rows[:, 1]),
            "ratio": spread(rows[:, 1] / rows[:, 0]),
        }
    return results


def run_case(args, backbone, cameras):
    """Compare one backbone and number of cameras."""
    plan = {
        "backbone": backbone,
        "cameras": cameras,
        "batch_sizes": args.batch_sizes,
        "threads": args.threads,
        "transitions": TRANSITIONS,
        "state_dim": work.STATE_DIM,
        "arm_actions": work.ARM_ACTIONS,
        "image_size": work.IMAGE_SIZE,
        "episode_steps": work.EPISODE_STEPS,
        "sample_size": work.SAMPLE_SIZE,
    }
    sides = []
    try:
        sides.append(Side("this project", sys.executable, "peer_ours.py", plan))
        sides.append(
            Side("LeRobot", args.lerobot_python, "peer_lerobot.py", plan | {"backbone": LEROBOT_BACKBONE[backbone]})
        )
        works = compare(*sides, args.pairs)
    finally:
        for side in sides:
            side.close()
    ours, lerobot = (side.facts for side in sides)
    return {"backbone": backbone, "cameras": cameras, "works": works, "facts": {"ours": ours, "lerobot": lerobot}}


def show(result, clock):
    backbone, rows = result["backbone"], []
    ours, lerobot = result["facts"]["ours"], result["facts"]["lerobot"]
    for name, taken in result["works"].items():
        times = [number(1e3 * taken[side][clock]["median"]) for side in ("ours", "lerobot")]
        ratios = [number(taken["ratio"][clock][statistic]) for statistic in ("median", "p10", "p90")]
        gflop = [number(side["gflop"].get(name)) for side in (ours, lerobot)]
        rows.append([name, *times, *ratios, taken["ratio"]["n"], *gflop])
    memory = [side["bytes_per_transition"] for side in (ours, lerobot)]
    rows.append(["bytes per transition", *(f"{x:,.0f}" for x in memory), number(memory[1] / memory[0]), *["-"] * 5])
    print(f"## ours {backbone}, LeRobot's {LEROBOT_BACKBONE[backbone]}, cameras: {result['cameras']}\n")
    heads = ("work", f"ours, {clock} ms", f"LeRobot, {clock} ms", "ratio", "p10", "p90", "n", "our GFLOP", "its GFLOP")
    table(heads, rows)


def main(argv=None):
    args = parse_args(argv)
    report = {"hardware": hardware(), "versions": versions(), "settings": vars(args) | {"json": str(args.json)}}
    show_machine(report)
    report["results"] = []
    for backbone, cameras in [(b, c) for b in args.backbones for c in args.cameras]:
        report["results"].append(run_case(args, backbone, cameras))
        if len(report["results"]) == 1:
            lerobot = report["results"][0]["facts"]["lerobot"]
            print(f"LeRobot {lerobot['lerobot']} with torch {lerobot['torch']}, {args.threads} thread(s) each\n")
        show(report["results"][-1], args.clock)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)

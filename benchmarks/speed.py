"""What updates, acting and the replay buffer cost on this machine, by stage, and how far that is from its limit.

    python benchmarks/speed.py
    python benchmarks/speed.py --backbones stored --cameras 1 --threads 1 --seconds 1 --json speed.json

Prints tables: one full update of the hybrid agent by stage, its floating-point operations against the rate at which
this machine multiplies matrices, acting, inserting, sampling, memory per transition. docs/performance.md says how to
read them. Nothing is written but --json's file.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from timing import OTHER  # noqa: E402
from work import BACKBONES, STAGES  # noqa: E402

from pytorch_serl.training.run import Parser, run_script, user_errors  # noqa: E402
from pytorch_serl.utils.device import pick_device  # noqa: E402

PARTS = ("update", "act", "buffer")
SLOW_BATCH = 256  # from here on a trained backbone is left out on a CPU
BUSY = 0.3  # running programs, on average over the last minute, from which on wall times are doubted


def parse_args(argv=None):
    cores = os.cpu_count() or 1
    parser = Parser(__doc__.split("\n")[0])
    what = parser.add_argument_group("what is measured")
    what.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="tables")
    what.add_argument(
        "--backbones",
        nargs="+",
        choices=BACKBONES,
        default=list(BACKBONES),
        help="stored: frozen, its features stored instead of frames; frozen: run on stored frames; trainable",
    )
    what.add_argument("--batch_sizes", nargs="+", type=int, default=[64, 256], help="transitions per update")
    what.add_argument("--cameras", nargs="+", type=int, default=[1, 2], help="numbers of cameras")
    what.add_argument("--device", nargs="+", default=["cpu", "auto"], help="auto, cuda, cuda:1, mps, cpu")
    what.add_argument("--threads", nargs="+", type=int, default=[1, 2][:cores], help="of a CPU's tables")
    what.add_argument("--transitions", type=int, default=10_000, help="in the buffer whose speed and memory are taken")
    what.add_argument("--slow", action="store_true", help="on a CPU also a trained backbone at batch 256 and above")
    how = parser.add_argument_group("how")
    how.add_argument("--repeats", type=int, default=20, help="of each update, at most")
    how.add_argument("--seconds", type=float, default=3.0, help="for each measurement, three repeats at least")
    how.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="what the tables show; cpu: CPU seconds of all threads, on a machine that other programs use, too",
    )
    how.add_argument("--json", type=Path, help="write every figure here, both clocks")
    args = parser.parse_args(argv)
    parser.require(
        args,
        {
            "batch_sizes": (min(args.batch_sizes) >= 2 and not any(b % 2 for b in args.batch_sizes), "even numbers"),
            "cameras": (min(args.cameras) >= 1, "1 or more each"),
            "threads": (1 <= min(args.threads) and max(args.threads) <= cores, f"1 to {cores}, the cores here"),
            "transitions": (args.transitions >= 256, "256 or more"),
            "repeats": (args.repeats >= 3, "3 or more"),
            "seconds": (args.seconds > 0, "a positive number"),
            "json": (args.json is None or args.json.absolute().parent.is_dir(), "a file in a directory that exists"),
        },
    )
    return args


def hardware():
    """The processor's name, cores, GPU, and how busy the machine is before the measurements."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    elif sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        processor = subprocess.run(command, capture_output=True, text=True).stdout.strip() or processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": processor, "cores": os.cpu_count(), "gpu": gpu or "none", "load": round(os.getloadavg()[0], 2)}


def versions():
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
    }


def make_plans(args):
    """One plan per device and number of threads, as benchmarks/measure.py takes it."""
    plans = []
    for device in dict.fromkeys(str(pick_device(name)) for name in args.device):
        names = ("parts", "backbones", "batch_sizes", "cameras", "transitions", "repeats", "seconds")
        plan = {name: getattr(args, name) for name in names} | {"device": device, "threads": None, "left_out": []}
        if device != "cpu":
            plans.append(plan | {"parts": [part for part in args.parts if part != "buffer"]})  # it is the host's
            continue
        if "trainable" in args.backbones and not args.slow:
            plan["left_out"] = [["trainable", size] for size in args.batch_sizes if size >= SLOW_BATCH]
        plans += [plan | {"threads": threads} for threads in dict.fromkeys(args.threads)]
    return plans


def environment(threads):
    """Environment variables of a process that measures; `threads` None leaves their number to PyTorch."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS") if threads else ()
    return os.environ | {"PYTHONPATH": str(ROOT)} | dict.fromkeys(names, str(threads))


def run_plan(plan):
    """Measure in a process of its own, whose number of threads is set before it starts.

    Returns: its results, and whether it measured everything.
    """
    command, results = [sys.executable, str(ROOT / "benchmarks/measure.py"), json.dumps(plan)], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(plan["threads"])) as process:
        try:
            for line in process.stdout:
                results.append(json.loads(line))
                shown = ("part", "device", "threads", "backbone", "storage", "cameras", "batch_size")
                print("measured", *(results[-1][name] for name in shown if name in results[-1]), file=sys.stderr)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        print(f"error: measuring on {plan['device']} ended with exit code {process.returncode}", file=sys.stderr)
    return results, process.returncode == 0


# ---------------------------------------------------------------- tables


def show_machine(report):
    """Print what was measured on, and a warning where other programs run."""
    facts = report["hardware"] | report["versions"]
    print(", ".join(f"{name} {value}" for name, value in facts.items()) + "\n")
    if facts["load"] > BUSY:
        print("Other programs are running: wall times are too long, see the CPU seconds (--clock cpu).\n")


def table(heads, rows):
    """Print a Markdown table whose columns line up."""
    rows = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths)) + " |")
    print()


def number(value):
    """Three digits that count."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ms(figures, clock, *names):
    """Statistics of a `spread` in milliseconds, as words."""
    return ["-" if figures is None else number(1e3 * figures[clock][name]) for name in names]


def show_updates(results, clock):
    rows = []
    for result in results:
        whole, gflop, limit = result["whole"], sum(result["gflop"].values()), result["matrix_gflops"][clock]
        reached = gflop / whole[clock]["median"]
        figures = [gflop, reached, limit]
        passes = "{forward:.3g} + {backward:.3g}".format(**result["passes"])
        rows.append(
            [
                result["backbone"],
                result["cameras"],
                result["batch_size"],
                *ms(whole, clock, "median", "p10", "p90"),
                number(whole["cpu"]["median"]),
                whole["n"],
                *map(number, figures),
                f"{reached / limit:.0%}",
                passes,
            ]
        )
    print("One full update with the sampling of its batch. limit: matrix products, in GFLOP/s. passes: of each frame")
    print("through a backbone, forward + backward.\n")
    heads = (
        "backbone",
        "cameras",
        "batch",
        f"{clock} ms",
        "p10",
        "p90",
        "CPU s",
        "n",
        "GFLOP",
        "GFLOP/s",
        "limit",
        "of limit",
        "passes",
    )
    table(heads, rows)


def show_stages(results, clock):
    names = [name for name in (*STAGES, OTHER) if any(name in result["stages"] for result in results)]
    times, shares = [], []
    for result in results:
        case = [result["backbone"], result["cameras"], result["batch_size"]]
        taken = {name: result["stages"][name][clock]["median"] if name in result["stages"] else None for name in names}
        total = sum(seconds for seconds in taken.values() if seconds)
        cells = [number(seconds and 1e3 * seconds) for seconds in (*taken.values(), total)]
        times.append([*case, *cells, *ms(result["whole"], clock, "median")])
        limit = result["matrix_gflops"][clock]
        counted = [(result["gflop"].get(name), taken[name]) for name in names]
        shares.append([*case, *(f"{gflop / seconds / limit:.0%}" if gflop else "-" for gflop, seconds in counted)])
    case = ("backbone", "cameras", "batch")
    print(f"By stage, {clock} ms, medians. sum: of the stages; whole: the update of the table above, not in stages.\n")
    table((*case, *names, "sum", "whole"), times)
    print("By stage, share of the limit; - where no matrix product or convolution is counted.\n")
    table((*case, *names), shares)


def show_acting(results, clock):
    print("Acting on one observation, from uint8 frames to the action. With a learner: updates in another process.\n")
    statistics = ("median", "p10", "p90", "p99")
    rows = [
        [
            result["backbone"],
            result["cameras"],
            *ms(result["act"], clock, *statistics),
            *ms(result.get("act_beside_learner"), clock, *statistics),
        ]
        for result in results
    ]
    heads = (f"{clock} ms: median", *statistics[1:], "with a learner: median", *statistics[1:])
    table(("backbone", "cameras", *heads), rows)


def show_buffer(results, clock):
    print("Replay buffer. insert: one transition; sample: 256; crops: random, of all sampled frames.\n")
    rows = []
    for result in results:
        measured = [result["bytes_per_transition"], result["computed_bytes_per_transition"]]
        rows.append(
            [
                result["storage"],
                result["cameras"],
                f"{result['transitions']:,}",
                *ms(result["insert"], clock, "median", "p90"),
                *ms(result["sample"], clock, "median", "p90"),
                *ms(result.get("sample_and_crop"), clock, "median", "p90"),
                *("-" if value is None else f"{value:,.0f}" for value in measured),
            ]
        )
    heads = (f"{clock} ms: insert", "p90", "sample", "p90", "sample and crops", "p90", "bytes/transition", "computed")
    table(("stored", "cameras", "transitions", *heads), rows)


SHOW = {"update": (show_updates, show_stages), "act": (show_acting,), "buffer": (show_buffer,)}


def show(results, clock):
    """Print the tables of one device and number of threads."""
    print(f"## {results[0]['device']}, threads: {results[0]['threads']}\n")
    for part, functions in SHOW.items():
        rows = [result for result in results if result["part"] == part]
        for function in functions if rows else ():
            function(rows, clock)


def main(argv=None):
    args = parse_args(argv)
    with user_errors():
        plans = make_plans(args)
    report = {"hardware": hardware(), "versions": versions(), "settings": vars(args) | {"json": str(args.json)}}
    show_machine(report)
    report["results"], complete = [], True
    for plan in plans:
        results, whole = run_plan(plan)
        report["results"] += results
        complete = complete and whole
        if results:
            show(results, args.clock)
        if plan["left_out"] and "update" in plan["parts"]:
            print("Left out as too slow on a CPU (--slow): trainable at batch", *(size for _, size in plan["left_out"]))
            print()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    run_script(lambda: sys.exit(main()))

"""What an update takes when torchrun's processes share it, against one process.

    python benchmarks/processes.py
    python benchmarks/processes.py --processes 1 2 4 --batch_sizes 1024 --seconds 20

Prints a table: median milliseconds per update of the hybrid agent (the work of benchmarks/speed.py), sampling included,
with one CPU thread per process. Without --measure it starts every number of processes in turn, --rounds times.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import work  # noqa: E402

from pytorch_serl.scaling import torchrun  # noqa: E402
from pytorch_serl.training.run import Parser, run_script  # noqa: E402
from pytorch_serl.utils.device import pick_device  # noqa: E402

WARM_UP = 3  # updates


def parse_args(argv=None):
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="numbers of processes")
    parser.add_argument(
        "--batch_sizes",
        nargs="+",
        type=int,
        default=[256, 1024],
        help="transitions per update, of all processes together",
    )
    parser.add_argument("--rounds", type=int, default=3, help="starts of each number of processes, in turn")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement, five updates at least")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--measure", action="store_true", help="measure in this process and print one line of JSON")
    return parser.parse_args(argv)


def measure(args):
    """Median seconds of an update, and of the sampling in it, by batch size."""
    device = pick_device(args.device)
    agent = work.make_agent("stored", 1, device)
    learner = work.make_learner(agent, "stored", work.LEARNER_TRANSITIONS)
    update = torchrun.shared_update(agent)
    results = {}
    for batch_size in args.batch_sizes:
        taken, end = [], None
        while end is None or time.perf_counter() < end or len(taken) < WARM_UP + 5:
            started = time.perf_counter()
            batch = learner.sample(batch_size)
            sampled = time.perf_counter()
            update(batch)["q"].item()  # waits for the device
            taken.append((time.perf_counter() - started, sampled - started))
            if len(taken) == WARM_UP:
                end = time.perf_counter() + args.seconds
        results[batch_size] = np.median(taken[WARM_UP:], axis=0).tolist()
    update.check()
    print(json.dumps(results))


def start(processes, args):
    """`measure` in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, "--measure", "--device", args.device]
    command += ["--seconds", str(args.seconds), "--batch_sizes", *map(str, args.batch_sizes)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return {int(size): value for size, value in json.loads(done.stdout.splitlines()[-1]).items()}


def main(argv=None):
    args = parse_args(argv)
    if args.measure:
        return measure(args)
    rounds = [{n: start(n, args) for n in args.processes} for _ in range(args.rounds)]
    print(f"{args.device}, PyTorch {torch.__version__}, {args.rounds} rounds; ms: median of the rounds (their range)\n")
    print("| batch | processes | ms per update | of it sampling | speed-up | efficiency |\n|---|---|---|---|---|---|")
    for size in args.batch_sizes:
        alone = np.median([row[args.processes[0]][size][0] for row in rounds])
        for n in args.processes:
            whole, sampling = 1000 * np.array([row[n][size] for row in rounds]).T  # (rounds,) each
            speed_up = 1000 * alone / np.median(whole)
            print(
                f"| {size} | {n} | {np.median(whole):.0f} ({whole.min():.0f} to {whole.max():.0f}) | "
                f"{np.median(sampling):.0f} | {speed_up:.2f} | {speed_up / n * args.processes[0]:.0%} |"
            )


if __name__ == "__main__":
    run_script(lambda: torchrun.run(main, torchrun.make_shared_update))

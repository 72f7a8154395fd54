"""How an update, an action, a sample and memory grow with the batch, the cameras, the frames, the buffer, the ensemble.

    python benchmarks/growth.py --output_dir ./growth
    python benchmarks/growth.py --output_dir ./growth --axes batch cameras --seconds 1

Writes growth_AXIS.png for each axis and growth.json; docs/performance.md shows and explains them. Each point is
measured in a process of its own, with one thread on a CPU.
"""

import multiprocessing as mp
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import work  # noqa: E402
from measure import peak_bytes, resident_bytes, synchronizer  # noqa: E402
from speed import environment, hardware, versions  # noqa: E402
from timing import alternate, make_clock, spread  # noqa: E402

from pytorch_serl.data.replay_buffer import ReplayBuffer  # noqa: E402
from pytorch_serl.training.run import Parser, make_writable_dir, run_script, save_json, user_errors  # noqa: E402
from pytorch_serl.utils.device import pick_device  # noqa: E402
from pytorch_serl.utils.files import atomic_write  # noqa: E402
from pytorch_serl.utils.memory import keep_freed_memory  # noqa: E402

REPEATS = 200
# axis -> (its label, its values, what is timed)
AXES = {
    "batch": ("transitions in a batch", (16, 32, 64, 128, 256, 512), "one full update"),
    "cameras": ("cameras", (1, 2, 3, 4), "one full update, batch 64"),
    "ensemble": ("critics", (1, 2, 4, 6, 8, 10), "one full update, batch 64"),
    "image_size": ("pixels on each side of a frame", (64, 128, 256, 512, 1024), "frame to action"),
    "fill": ("transitions in the buffer", (1_000, 4_000, 16_000, 64_000), "sample of 256"),
}


def parse_args(argv=None):
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="for pictures and figures")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="what grows")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each point")
    parser.add_argument("--device", default="cpu", help="auto, cuda, cuda:1, mps, cpu")
    args = parser.parse_args(argv)
    parser.require(args, {"seconds": (args.seconds > 0, "a positive number")})
    return args


def prepare(axis, value, device):
    """The work of one point, as a function without arguments."""
    if axis == "fill":
        buffer = ReplayBuffer(value, work.camera_names(1))
        for transition in work.random_transitions(work.random_observations(1, features=True), value):
            buffer.add(transition)
        return lambda: work.draw(buffer, crop=False)
    if axis == "image_size":
        agent = work.make_agent("stored", 1, device)
        (obs, *_) = work.random_observations(1, size=value)
        return lambda: work.act(agent, "stored", obs)
    agent = work.make_agent(
        "stored", value if axis == "cameras" else 1, device, ensemble_size=value if axis == "ensemble" else 2
    )
    learner = work.make_learner(agent, "stored", work.LEARNER_TRANSITIONS)
    return lambda: agent.update(learner.sample(value if axis == "batch" else 64))


def measure(axis, value, device_name, seconds):
    """One point: milliseconds, and megabytes that this process took beyond its libraries."""
    keep_freed_memory()
    device = torch.device(device_name)
    start = resident_bytes()
    run = prepare(axis, value, device)
    run(), run()
    taken = spread(alternate({"run": run}, make_clock(synchronizer(device)), REPEATS, seconds)["run"])
    point = {"axis": axis, "value": value, "ms": {k: 1e3 * v for k, v in taken["wall"].items()}, "n": taken["n"]}
    if device.type == "cuda":
        point["mb"] = torch.cuda.max_memory_allocated() / 1e6
    elif start is not None:
        point["mb"] = (peak_bytes() - start) / 1e6
    return point


def draw(path, axis, points):
    """Milliseconds (median, p10 to p90) and megabytes over the axis, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    label, _, timed = AXES[axis]
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    values = [point["value"] for point in points]
    low, median, high = ([point["ms"][k] for point in points] for k in ("p10", "median", "p90"))
    left.plot(values, median, marker=".")
    left.fill_between(values, low, high, alpha=0.3)
    left.set_ylabel(f"{timed}, ms")
    if all("mb" in point for point in points):
        right.plot(values, [point["mb"] for point in points], marker=".")
    right.set_ylabel("memory, MB")
    for axes in (left, right):
        axes.set(xlabel=label, ylim=(0, 1.05 * axes.get_ylim()[1]))
        axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def main(argv=None):
    args = parse_args(argv)
    with user_errors():
        make_writable_dir(args.output_dir)
        device = pick_device(args.device)
    os.environ.update(environment(1 if device.type == "cpu" else None))  # of the processes that measure
    report = {"hardware": hardware(), "versions": versions(), "device": str(device), "points": []}
    for axis in args.axes:
        points = []
        for value in AXES[axis][1]:
            with mp.get_context("spawn").Pool(1) as pool:
                points.append(pool.apply(measure, (axis, value, str(device), args.seconds)))
            figures = points[-1]["ms"]
            print(
                f"{axis} {value:,}: {figures['median']:.2f} ms ({figures['p10']:.2f} to {figures['p90']:.2f}), "
                f"{points[-1].get('mb', float('nan')):.0f} MB",
                flush=True,
            )
        draw(args.output_dir / f"growth_{axis}.png", axis, points)
        report["points"] += points
    save_json(args.output_dir / "growth.json", report)


if __name__ == "__main__":
    run_script(main)

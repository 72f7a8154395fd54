"""The tables of docs/results.md: tasks x methods x seeds, each run once, one process per core at one thread.

    python benchmarks/tasks.py --tasks single-arm-learned-gripper robosuite-lift --methods clone hybrid --seeds 0 1 2
    python benchmarks/tasks.py --jobs 0                   trains nothing, prints the table of the runs that are there
    python benchmarks/tasks.py --jobs 0 --curves curves   besides draws them over the steps, with matplotlib

A run writes one JSON (--runs, ./benchmarks/runs) when it has ended, with the commit that it belongs to and its
evaluations; where that file is, nothing is trained. Demos and run directories go to --output_dir (./runs/tasks); a run
that was interrupted goes on from its checkpoint. With the human a run has at most 5,000 environment steps, without
10,000. Words after `--` go to the training script. The simulators want `pip install -r requirements/sim.txt`.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pytorch_serl.data.demos import SETUP_MODES  # noqa: E402
from pytorch_serl.training.evaluate import wilson_interval  # noqa: E402

ONE, TWO = ["image", "wrist"], ["image", "wrist_left", "wrist_right"]
TASKS = {  # --setup_mode, --image_keys; --env is the task's name, or built-in where that is a setup mode
    "single-arm-fixed-gripper": ("single-arm-fixed-gripper", ONE),
    "single-arm-learned-gripper": ("single-arm-learned-gripper", ONE),
    "dual-arm-fixed-gripper": ("dual-arm-fixed-gripper", TWO),
    "dual-arm-learned-gripper": ("dual-arm-learned-gripper", TWO),
    "panda": ("single-arm-learned-gripper", ONE),
    "robosuite-lift": ("single-arm-learned-gripper", ONE),
    "robosuite-pick-place-can": ("single-arm-learned-gripper", ONE),
    "robosuite-door": ("single-arm-fixed-gripper", ONE),
    "robosuite-two-arm-peg-in-hole": ("dual-arm-fixed-gripper", ["image", "top"]),
    "robosuite-two-arm-lift": ("dual-arm-learned-gripper", TWO),
    "metaworld-assembly": ("single-arm-learned-gripper", ONE),
    "metaworld-box-close": ("single-arm-learned-gripper", ONE),
    "metaworld-coffee-push": ("single-arm-learned-gripper", ONE),
    "metaworld-stick-pull": ("single-arm-learned-gripper", ONE),
    "metaworld-button-press-topdown": ("single-arm-fixed-gripper", ONE),
    "metaworld-drawer-open": ("single-arm-fixed-gripper", ONE),
}
QUICK = ["--batch_size", "64", "--cta_ratio", "1"]  # the quick-start's: as much from a step, by fewer updates
HUMAN = ["--human", "scripted", *QUICK, "--max_steps", "5000"]
METHODS = {  # the table's words, the script, its options
    "clone": ("cloning of 20 demos", "train_offline.py", ["--algo", "bc"]),
    "offline": ("offline default", "train_offline.py", []),
    "hybrid": ("hybrid, scripted human", "train_hybrid.py", HUMAN),
    "alone": ("hybrid, no human", "train_hybrid.py", ["--human", "env", *QUICK, "--max_steps", "10000"]),
    "hg_dagger": ("HG-DAgger, scripted human", "train_hybrid.py", ["--algo", "hg_dagger", *HUMAN]),
    "original": ("the original's setting", "train_hybrid.py", ["--pretrain_steps", "0", *HUMAN]),
}
SETTINGS = ("batch_size", "cta_ratio", "pretrain_steps", "clone_std", "max_steps", "eval_episodes", "backbone")
HEAD = (
    "task",
    "method",
    "seed",
    "solved of 100, mode (interval)",
    "sampled",
    "environment steps",
    "steps to 90 %",
    "to 95 %",
    "lowest, of clone's",
    "helped at the end",
    "minutes",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time; 0 trains nothing")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks/runs", help="JSON files, one a run")
    parser.add_argument("--output_dir", type=Path, default=Path("./runs/tasks"), help="demos and run directories")
    parser.add_argument("--curves", type=Path, help="draw every task's success over steps into PNGs in this folder")
    words = sys.argv[1:]
    own, extra = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = parser.parse_args(own)
    grid = list(itertools.product(args.tasks, args.methods, args.seeds))
    if args.jobs:
        with ThreadPoolExecutor(args.jobs) as pool:
            for task in {run[0]: None for run in grid if not file_of(args.runs, *run).exists()}:
                record(task, args.output_dir)  # one after another: every method learns from the same demos
            failed = [error for error in pool.map(lambda run: train(*run, args, extra), grid) if error]
        print("\n".join(failed), file=sys.stderr)
    runs = [json.loads(path.read_text()) for path in (file_of(args.runs, *run) for run in grid) if path.exists()]
    print(table(runs))
    if args.curves:
        args.curves.mkdir(parents=True, exist_ok=True)
        for task in {run["task"]: None for run in runs if is_online(run["method"])}:
            draw([run for run in runs if run["task"] == task], args.curves / f"{task}.png")


def file_of(folder, task, method, seed):
    return folder / f"{task}_{method}_{seed}.json"


def is_online(method):
    return METHODS[method][1] == "train_hybrid.py"


def demos_of(task, output_dir):
    return output_dir / f"demos_{task}"


def environment(task):
    mode, _ = TASKS[task]
    return ["--env", "built-in" if task in SETUP_MODES else task, "--setup_mode", mode]


def record(task, output_dir):
    """The task's demos, where they are not there yet; what was begun goes on."""
    out = demos_of(task, output_dir)
    if not (out / "demos.pkl").exists():
        command = [sys.executable, ROOT / "record_demos.py", *environment(task), "--num_demos", 20]
        run([*command, "--num_classifier_episodes", 0, "--output_dir", out, *["--resume"] * out.exists()])


def train(task, method, seed, args, extra):
    """One run to its end, and its JSON; what went wrong in a line, or None."""
    file = file_of(args.runs, task, method, seed)
    if file.exists():
        return None
    (_, cameras), (_, script, options) = TASKS[task], METHODS[method]
    out = args.output_dir / f"{task}_{method}_{seed}"
    command = [sys.executable, ROOT / script, *environment(task), "--image_keys", *cameras]
    command += ["--demo_paths", demos_of(task, args.output_dir) / "demos.pkl", "--seed", seed, "--save_dir", out]
    begun = ["--resume"] if (out / "last.pt").exists() else ["--overwrite"]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with open(out.with_suffix(".log"), "ab") as log:
        try:
            run([*command, "--final_episodes", 100, *begun, *options, *extra], stdout=log, stderr=log)
        except subprocess.CalledProcessError as error:
            return f"{out.name} ended with {error.returncode}: {out.with_suffix('.log')}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(summary(task, method, seed, out), indent=1) + "\n")
    return None


def run(command, **files):
    subprocess.run([str(w) for w in command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **files)


def summary(task, method, seed, out):
    """What a run wrote, as far as the table wants it."""
    final = json.loads((out / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    settings = json.loads((out / "settings.json").read_text())
    names = ("step", "minutes", "eval_success", "eval_sampled")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "commit": commit.stdout.strip(),
        "settings": {name: settings[name] for name in SETTINGS if name in settings},
        "evaluations": [{k: row[k] for k in names if k in row} for row in rows if "eval_success" in row],
        "helped_steps": [[row["step"], row["helped_steps"]] for row in rows if "helped_steps" in row],
        "final": {k: [final[k]["successes"], final[k]["episodes"]] for k in ("deterministic", "sampled") if k in final},
    }


def table(runs):
    """The runs as a table in Markdown."""
    return "\n".join(["| " + " | ".join(line) + " |" for line in (HEAD, ["---"] * len(HEAD), *map(cells, runs))])


def draw(runs, path):
    """Success unaided over environment steps: a line for each method's mean, a band from its worst to its best seed.

    A seed that stopped by itself counts with its last evaluation from there on.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method in {run["method"]: None for run in runs}:
        curves = [run["evaluations"] for run in runs if run["method"] == method]
        if not is_online(method):
            rates = [run["final"]["deterministic"] for run in runs if run["method"] == method]
            rate = sum(solved for solved, _ in rates) / sum(episodes for _, episodes in rates)
            axes.axhline(rate, ls=":", color="grey", label=METHODS[method][0])
            continue
        steps = np.linspace(0, max(curve[-1]["step"] for curve in curves), 200)
        rates = [np.interp(steps, [e["step"] for e in c], [e["eval_success"] for e in c]) for c in curves]
        (line,) = axes.plot(steps, np.mean(rates, 0), label=f"{METHODS[method][0]}, seeds: {len(curves)}")
        axes.fill_between(steps, np.min(rates, 0), np.max(rates, 0), color=line.get_color(), alpha=0.2, lw=0)
    axes.set(title=runs[0]["task"], xlabel="environment step", ylabel="solved without help", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=110)


def cells(run):
    online = is_online(run["method"])
    evaluations, (solved, episodes) = run["evaluations"], run["final"]["deterministic"]
    low, high = wilson_interval(solved, episodes)
    rates = [row["eval_success"] for row in evaluations]
    reached = [
        next((f"{row['step']:,}" for row in evaluations if row["eval_success"] >= rate), "not") for rate in (0.9, 0.95)
    ]
    return [
        run["task"],
        METHODS[run["method"]][0],
        str(run["seed"]),
        f"{solved} of {episodes} ({low:.0%} to {high:.0%})",
        "{} of {}".format(*run["final"]["sampled"]) if "sampled" in run["final"] else "-",
        f"{evaluations[-1]['step']:,}" if online else "0",
        *(reached if online else ["-", "-"]),
        f"{min(rates[1:]):.0%} of {rates[0]:.0%}" if online and len(rates) > 1 else "-",
        f"{run['helped_steps'][-1][1]:.0%}" if run["helped_steps"] else "-",
        f"{evaluations[-1]['minutes']:.1f}",
    ]


if __name__ == "__main__":
    main()

"""Runs of the training scripts in tests: tiny demos, command lines, and what a run left."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import record_demos
from pytorch_serl.utils.files import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
FIXED, LEARNED = "single-arm-fixed-gripper", "single-arm-learned-gripper"
RUN_OUTPUTS = {"best.pt", "last.pt", "settings.json", "metrics.jsonl", "learning_curve.png"}


def make_demos(path, episodes=6, action_dim=6, gripper=False, keys=("image",), length=4, seed=0, size=32, state=True):
    rng = np.random.default_rng(seed)
    transitions = []
    for _ in range(episodes):
        obs = [
            {key: rng.integers(0, 256, (size, size, 3), np.uint8) for key in keys}
            | ({"state": rng.normal(size=3).astype(np.float32)} if state else {})
            for _ in range(length + 1)
        ]
        for step in range(length):
            done = step == length - 1
            action = rng.uniform(-0.9, 0.9, action_dim).astype(np.float32)
            if gripper:
                action[-1] = (-1, 0, 1)[step % 3]
            transitions.append(
                {
                    "observations": obs[step],
                    "actions": action,
                    "next_observations": obs[step + 1],
                    "rewards": float(done),
                    "dones": done,
                    "masks": 1.0 - done,
                    "grasp_penalty": -0.02 * (step % 2),
                }
            )
    path.write_bytes(pickle.dumps(transitions))
    return path


def record(setup_mode, output_dir, **options):
    """Run record_demos.py in this process; returns the path of the demos."""
    record_demos.main(command({"setup_mode": setup_mode, "output_dir": output_dir} | options))
    return output_dir / "demos.pkl"


def command(options):
    """Options by name to words; one of None is left out, True has no value."""
    result = []
    for name, value in options.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        result += [] if value is None else [f"--{name}"] + [str(v) for v in values if v is not True]
    return result


def content(out):
    return load_checkpoint(Path(out) / "last.pt")


def metrics(out, name):
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(a, b):
    """Agent, optimisers, random states, sampling and progress, bit for bit; the minutes differ."""
    a, b = content(a), content(b)
    for key in ("step", "agent", "rng", "sampling"):
        assert equal(a[key], b[key]), key
    assert a["progress"] | {"minutes": 0} == b["progress"] | {"minutes": 0}


def refused(script, capsys, message, command):
    with pytest.raises(SystemExit) as error:
        script.main(command)
    lines = capsys.readouterr().err.strip().splitlines()
    assert error.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert message in lines[0], lines[0]
    return lines[0]

"""Measures on one device with one number of threads; benchmarks/speed.py starts it, one process per table.

    python benchmarks/measure.py '{"device": "cpu", "threads": 1, ...}'

Prints one line of JSON per result. A process of its own, because the number of threads is fixed when it starts.
"""

import gc
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import work
from timing import Stages, alternate, make_clock, spread, timed
from torch.utils.flop_counter import FlopCounterMode

from pytorch_serl.agents import base
from pytorch_serl.agents.sac import SACHybridAgent
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.training.learner import Learner
from pytorch_serl.utils.device import pick_device
from pytorch_serl.utils.memory import keep_freed_memory

ACTIONS, INSERTS, SAMPLES, PRODUCTS = 300, 500, 50, 40  # repeats at most
MATRIX_SIZE = {"cpu": 1024, "cuda": 4096, "mps": 2048}


def stage_points(agent: SACHybridAgent, learner: Learner) -> list[tuple[Any, str, str]]:
    """Where the stages of sampling and one update begin: (owner, attribute, stage)."""
    points = [
        (learner, "sample", "sample"),
        (agent, "_prepare", "transport"),
        (base, "crop_offsets", "augment"),
        (base, "random_crop", "augment"),
        (agent, "_encode", "encode"),
        (agent, "_critic_loss", "critic"),
        (agent, "_grasp_critic_loss", "grasp"),
        (agent, "_actor_loss", "actor"),
        (agent, "_temperature_loss", "temperature"),
        (torch.Tensor, "backward", "backward"),
        (torch, "_foreach_lerp_", "target"),
    ]
    points += [(optimizer, "step", "optimiser") for optimizer in agent.optimizers.values()]
    return points + [(backbone, "forward", "backbone") for backbone in work.backbones_of(agent)]


def synchronizer(device: torch.device) -> Any:
    """What waits for the device, None on a CPU."""
    return None if device.type == "cpu" else getattr(torch, device.type).synchronize


def matrix_rate(device: torch.device, seconds: float) -> dict[str, float]:
    """GFLOP per second, by clock, of float32 matrix products under PyTorch's present settings; see `spread`'s p10."""
    size = MATRIX_SIZE[device.type]
    a, b = torch.rand(2, size, size, device=device)
    out = torch.empty_like(a)

    def product() -> None:
        torch.mm(a, b, out=out)

    clock = make_clock(synchronizer(device))
    timed(product, clock)
    taken = spread(alternate({"product": product}, clock, PRODUCTS, seconds)["product"])
    return {name: 2 * size**3 / 1e9 / taken[name]["p10"] for name in ("wall", "cpu")}


def count_work(agent: SACHybridAgent, learner: Learner, batch_size: int) -> dict[str, Any]:
    """GFLOP of one update by stage, and how often a frame goes through a backbone, forward and backward."""
    passes = np.zeros(2)

    def count(module: Any, inputs: Any, output: torch.Tensor) -> None:
        passes[:] += len(output), len(output) * output.requires_grad

    hooks = [backbone.register_forward_hook(count) for backbone in work.backbones_of(agent)]
    with FlopCounterMode(display=False) as counter:
        stages = Stages(lambda: np.array(counter.get_total_flops() / 1e9))
        with stages.whole(stage_points(agent, learner)):
            agent.update(learner.sample(batch_size))
    for hook in hooks:
        hook.remove()
    forward, backward = passes / (batch_size * len(agent.image_keys))
    return {
        "gflop": {name: float(total) for name, total in stages.totals.items()},
        "passes": {"forward": forward, "backward": backward},
    }


def measure_update(agent: SACHybridAgent, learner: Learner, batch_size: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Sampling and one full update on the batch: as they are, and by stage, in turn."""
    clock = make_clock(synchronizer(agent.device))
    stages, by_stage = Stages(clock), []

    def whole() -> None:
        agent.update(learner.sample(batch_size))

    def staged() -> None:
        with stages.whole(stage_points(agent, learner)):
            whole()
        by_stage.append(stages.totals)

    end = time.perf_counter() + 0.1 * plan["seconds"]
    counted = count_work(agent, learner, batch_size)  # warms up, too
    while time.perf_counter() < end:
        whole()
    rate = matrix_rate(agent.device, 0.1 * plan["seconds"])
    taken = alternate({"whole": whole, "staged": staged}, clock, plan["repeats"], plan["seconds"])
    after = matrix_rate(agent.device, 0.1 * plan["seconds"])
    return counted | {
        "batch_size": batch_size,
        "whole": spread(taken["whole"]),
        "whole_by_stage": spread(taken["staged"]),
        "stages": {name: spread(np.array([totals[name] for totals in by_stage])) for name in by_stage[0]},
        "matrix_gflops": {name: max(rate[name], after[name]) for name in rate},
    }


def measure_acting(agent: SACHybridAgent, backbone: str, plan: dict[str, Any]) -> dict[str, Any]:
    """From camera frames to an action; on one thread of a CPU with several cores also beside a busy learner."""
    observations = itertools.cycle(work.random_observations(len(agent.image_keys)))
    clock = make_clock(synchronizer(agent.device))

    def act() -> None:
        work.act(agent, backbone, next(observations))

    def latency() -> dict[str, Any]:
        return spread(alternate({"act": act}, clock, ACTIONS, plan["seconds"])["act"])

    act()
    result = {"act": latency()}
    if plan["threads"] == 1 and agent.device.type == "cpu" and (os.cpu_count() or 1) > 1:
        busy = {"parts": ["learn"], "backbones": [backbone], "cameras": [len(agent.image_keys)]}
        command = [sys.executable, __file__, json.dumps(plan | busy)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as learner:
            try:
                if learner.stdout.readline():  # its first update is done
                    result["act_beside_learner"] = latency()
            finally:
                learner.terminate()
    return result


def keep_learning(agent: SACHybridAgent, learner: Learner, batch_size: int) -> None:
    """Update until the process that started this one ends it, or is gone."""
    parent = os.getppid()
    agent.update(learner.sample(batch_size))
    print("learning", flush=True)
    while os.getppid() == parent:
        agent.update(learner.sample(batch_size))


def resident_bytes() -> int | None:
    """Memory of this process that is really there; None where the system does not say it as Linux does."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def peak_bytes() -> int | None:
    """The most that `resident_bytes` ever was; `ru_maxrss` would begin with what the starting process had."""
    status = Path("/proc/self/status")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 if status.exists() else None


def measure_buffer(storage: str, cameras: int, plan: dict[str, Any]) -> dict[str, Any]:
    """Inserting, sampling, and the memory that a full buffer takes; storage: features (one view) or frames."""
    observations = work.random_observations(cameras, features=storage == "features")
    gc.collect()
    before = resident_bytes()
    buffer = ReplayBuffer(plan["transitions"], work.camera_names(cameras))
    for transition in work.random_transitions(observations, plan["transitions"]):
        buffer.add(transition)
    memory = None if before is None else (resident_bytes() - before) / plan["transitions"]
    clock, more = make_clock(), work.random_transitions(observations, INSERTS)
    inserts = [timed(lambda: buffer.add(transition), clock) for transition in more]  # noqa: B023
    works = {"sample": lambda: work.draw(buffer, crop=False)}
    if storage == "frames":
        works["sample_and_crop"] = lambda: work.draw(buffer, crop=True)
    for warm_up in works.values():
        warm_up()
    taken = alternate(works, clock, SAMPLES, plan["seconds"])
    return {
        "storage": storage,
        "cameras": cameras,
        "transitions": plan["transitions"],
        "bytes_per_transition": memory,
        "computed_bytes_per_transition": buffer.size_gb() * 1e9 / plan["transitions"],
        "insert": spread(np.array(inserts)),
        **{name: spread(rows) for name, rows in taken.items()},
    }


def main(plan: dict[str, Any]) -> None:
    keep_freed_memory()  # as the scripts do
    device = pick_device(plan["device"])
    if plan["threads"]:
        torch.set_num_threads(plan["threads"])
    place = {"device": str(device), "threads": torch.get_num_threads()}

    def report(part: str, result: dict[str, Any]) -> None:
        print(json.dumps({"part": part, **place, **result}), flush=True)

    storages = {"features" if backbone == "stored" else "frames": None for backbone in plan["backbones"]}
    for storage, cameras in [(s, c) for s in storages for c in plan["cameras"] if "buffer" in plan["parts"]]:
        report("buffer", measure_buffer(storage, cameras, plan))
    for backbone, cameras in [(b, c) for b in plan["backbones"] for c in plan["cameras"]]:
        case = {"backbone": backbone, "cameras": cameras}
        batch_sizes = [size for size in plan["batch_sizes"] if [backbone, size] not in plan["left_out"]]
        agent = work.make_agent(backbone, cameras, device)
        if "act" in plan["parts"]:
            report("act", case | measure_acting(agent, backbone, plan))
        if "learn" in plan["parts"] or ("update" in plan["parts"] and batch_sizes):
            learner = work.make_learner(agent, backbone, min(plan["transitions"], work.LEARNER_TRANSITIONS))
            if "learn" in plan["parts"]:
                keep_learning(agent, learner, min(plan["batch_sizes"]))
        for batch_size in batch_sizes if "update" in plan["parts"] else ():
            report("update", case | measure_update(agent, learner, batch_size, plan))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Our half of benchmarks/peer.py: does the work that it is told to on standard input, see `timing.serve`."""

import itertools
import json
import sys

import torch
import work
from timing import serve
from torch.utils.flop_counter import FlopCounterMode

from pytorch_serl.utils.memory import keep_freed_memory


def main(plan):
    keep_freed_memory()  # as the scripts do
    torch.set_num_threads(plan["threads"])
    backbone, cameras = plan["backbone"], plan["cameras"]
    agent = work.make_agent(backbone, cameras, torch.device("cpu"))
    learner = work.make_learner(agent, backbone, plan["transitions"])
    observations = itertools.cycle(work.random_observations(cameras))
    works, gflop = {}, {}
    for size in plan["batch_sizes"]:
        batch = learner.sample(size)
        with FlopCounterMode(display=False) as counter:
            agent.update(batch)
        gflop[f"update {size}"] = counter.get_total_flops() / 1e9
        works[f"update {size}"] = lambda batch=batch: agent.update(batch)
        works[f"sample and update {size}"] = lambda size=size: agent.update(learner.sample(size))
    works[f"sample {work.SAMPLE_SIZE}"] = lambda: work.draw(learner.online, crop=backbone != "stored")
    works["act"] = lambda: work.act(agent, backbone, next(observations))
    bytes_per_transition = learner.online.full_size_gb() * 1e9 / learner.online.capacity
    serve(works, {"torch": torch.__version__, "gflop": gflop, "bytes_per_transition": bytes_per_transition})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Twenty updates of small agents and of a classifier; tests/test_distributed.py runs this by torchrun and compares.

Nothing is drawn in them but in "drawn": noise is given, dropout and crops are off.

    python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed_worker.py FOLDER CASE ...

Writes FOLDER/CASE.pt for each case; "CASE in double" computes in float64. "draws" prints numbers of both processes,
"drift", "fail", "die" and "own failure" are what can go wrong.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_classifier  # noqa: E402
from pytorch_serl.agents import base  # noqa: E402
from pytorch_serl.agents.sac import SACAgent  # noqa: E402
from pytorch_serl.networks.classifier import RewardClassifier  # noqa: E402
from pytorch_serl.scaling import torchrun  # noqa: E402
from pytorch_serl.training.run import run_script  # noqa: E402
from pytorch_serl.utils.device import make_adam  # noqa: E402
from tests.test_agents import make_agent, make_batch  # noqa: E402
from train_offline import UPDATES  # noqa: E402

BATCH, STEPS = 8, 20
SAC = {"clone_weight": 2.0, "clone_std": 0.1}
CASES = {  # the agent's settings, and what each update is asked for
    "one arm": ({"arms": 1, "cameras": ["image"]}, SAC),
    "two arms": ({"arms": 2, "q_range": (0.0, 1.0)}, SAC),
    "bc": ({"arms": 1}, UPDATES["bc"]),
    "awac": ({"arms": 0, "cameras": ["image"]}, UPDATES["awac"]),
    "temperature": ({"arms": 0}, {}),  # it learns where nothing is cloned
    "frames": ({"arms": 1, "cameras": ["image", "wrist"]}, SAC),
    "trained backbone": ({"arms": 0, "cameras": ["image"], "trainable_backbone": True}, SAC),
}
CASES["trained backbone once"] = (CASES["trained backbone"][0], {**SAC})
DRAWN = {"drawn": ({"arms": 1, "cameras": ["image"]}, SAC)}
SLOW = {"frames": 2, "trained backbone": 2, "trained backbone once": 1}  # cases on frames, and their number of updates
NOISE = ("critic_next", "temp_next", "actor", "advantage")
DRIFT, FAIL, DIE, DRAW = 0.123, 0.124, 0.125, 0.126  # learning rates that tell what another process shall do


DOUBLE = " in double"
AS_TENSOR, FLOAT, FLOAT_FEATURES = torch.as_tensor, torch.Tensor.float, base._float_features
MAKE_AGENT, MAKE_CLASSIFIER = SACAgent.__init__, RewardClassifier.__init__


def compute_in(dtype):
    """Let everything that would be float32 be `dtype` from now on: in float64 rounding hides no other difference."""
    torch.set_default_dtype(dtype)
    double = dtype is torch.float64
    torch.Tensor.float = torch.Tensor.double if double else FLOAT
    torch.as_tensor = as_double if double else AS_TENSOR
    base._float_features = torch.Tensor.double if double else FLOAT_FEATURES
    SACAgent.__init__ = double_agent if double else MAKE_AGENT
    RewardClassifier.__init__ = double_classifier if double else MAKE_CLASSIFIER


def double_agent(self, *args, **settings):
    MAKE_AGENT(self, *args, **settings)
    for name in ("online", "target", "actor", "average_actor", "temperature", "backbone"):
        if getattr(self, name) is not None:
            getattr(self, name).double()


def double_classifier(self, *args, **settings):
    MAKE_CLASSIFIER(self, *args, **settings)
    self.double()


def as_double(x, dtype=None, **options):
    return AS_TENSOR(x, dtype=torch.float64 if dtype is torch.float32 else dtype, **options)


def tensors(batch):
    return {k: tensors(v) if isinstance(v, dict) else torch.as_tensor(v) for k, v in batch.items()}


def hybrid_batch(agent, seed, size=None):
    """The first half online, the second half demos, as `Learner.sample` has them."""
    batch = tensors(make_batch(agent, BATCH, seed=seed, size=size))
    if agent.image_keys and size is None:  # as the backbone's: not negative, half of them zero
        for obs in (batch["observations"], batch["next_observations"]):
            obs.update({k: obs[k].relu().half() for k in agent.image_keys})
    return batch | {"is_demo": torch.arange(BATCH).ge(BATCH // 2).float()}


def run_agent(name):
    """The case's updates; returns the agent's state, the last metrics and the random state."""
    settings, options = (CASES | DRAWN)[name]
    agent = make_agent(**settings | ({} if name in DRAWN else {"dropout": 0.0}))
    update = torchrun.shared_update(agent)
    torch.manual_seed(7)
    for i in range(SLOW.get(name, STEPS)):
        batch = hybrid_batch(agent, i, (40, 40) if name in SLOW else None)
        critic_only = options is SAC and i % 2 == 0
        given = {} if name in DRAWN else {"augment": False, "noise": noise(agent, i)}
        info = update(batch, **({"critic_only": True} if critic_only else options), **given)
    update.check()
    return {"state": agent.state_dict(), "info": info, "rng": torch.get_rng_state()}


def noise(agent, seed):
    """Normal draws for the whole batch."""
    rng = np.random.default_rng(100 + seed)
    return {name: torch.as_tensor(rng.standard_normal((BATCH, agent.action_dim), np.float32)) for name in NOISE}


def run_classifier(name):
    """Twenty steps on stored maps, or two on frames with a trained backbone."""
    torch.manual_seed(0)
    frames = name == "classifier frames"
    classifier = RewardClassifier(["image"], dropout=0.0, trainable_backbone=frames, device="cpu").train()
    optimizer = make_adam(classifier.trainable_parameters(), 1e-4)
    step = train_classifier.shared_step(classifier, optimizer)
    torch.manual_seed(7)
    for i in range(2 if frames else STEPS):
        rng, targets = np.random.default_rng(i), torch.arange(BATCH).lt(BATCH // 2).float()
        if frames:
            inputs = {"images": {"image": torch.from_numpy(rng.integers(0, 256, (BATCH, 40, 40, 3), np.uint8))}}
        else:
            maps = rng.standard_normal((BATCH, *classifier.feature_shape), np.float32)
            inputs = {"maps": {"image": torch.from_numpy(maps).relu().half()}}
        info = step(inputs | {"targets": targets})
    step.check()
    state = {"modules": {"classifier": classifier.state_dict()}, "optimizers": {"one": optimizer.state_dict()}}
    return {"state": state, "info": info, "rng": torch.get_rng_state()}


def run_case(name):
    compute_in(torch.float64 if name.endswith(DOUBLE) else torch.float32)
    try:
        case = name.removesuffix(DOUBLE)
        return run_classifier(case) if case.startswith("classifier") else run_agent(case)
    finally:
        compute_in(torch.float32)


def make_step(state, device):
    """What the other processes do; where a learning rate says so, it goes wrong."""
    weights = state["classifier"]["weights"] if "classifier" in state else state["modules"]["actor"]
    compute_in(next(iter(weights.values())).dtype)
    if "classifier" in state:
        return train_classifier.make_shared_step(state, device)
    shared, lr = torchrun.make_shared_update(state, device), state["config"]["lr"]
    if lr == DRAW:
        shared.step = draw
    if lr == DRIFT:
        shared.parameters[0].data.add_(1e-3)
    if lr == FAIL:
        shared.step = lambda *_, **__: 1 / 0
    if lr == DIE:
        shared.step = lambda *_, **__: os._exit(7)
    return shared


def draw(batch):
    """Numbers that a step may draw; the largest of all processes, and their mean."""
    number = torch.rand(())
    return {"number": number, "number_max": number}


def main():
    folder, *names = sys.argv[1:]
    for name in names:
        if name == "draws":
            agent = make_agent(lr=DRAW)
            update = torchrun.shared_update(agent)
            update.step = draw
            for seed in (0, 1, 0):
                torch.manual_seed(seed)
                infos = [update({"rows": torch.zeros(BATCH)}) for _ in range(2)]
                print(name, *(f"{info[key].item():.9f}" for info in infos for key in ("number", "number_max")))
            continue
        if name in ("drift", "fail", "die", "own failure"):
            lr = {"drift": DRIFT, "fail": FAIL, "die": DIE}.get(name, 1e-3)
            agent = make_agent(lr=lr)
            update = torchrun.shared_update(agent)
            update(hybrid_batch(agent, 0))
            if name == "own failure":
                shared, update.step = update, lambda *_, **__: 1 / 0
                shared(hybrid_batch(agent, 1))
            try:
                update.check()
            except FloatingPointError as error:
                print("drifted:", error)
        else:
            torch.save(run_case(name), Path(folder) / f"{name}.pt")
            print(f"{name} done by process {torchrun.rank()}")


if __name__ == "__main__":
    run_script(lambda: torchrun.run(main, make_step))

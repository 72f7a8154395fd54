"""Where tensors live: CUDA, then Apple MPS, then the CPU."""

import os
from collections.abc import Iterable

import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name` ("auto", "cuda", "cuda:1", "mps", "cpu"), checked to be usable.

    "auto" takes CUDA where there is one, else MPS, else the CPU. Of several GPUs each process of torchrun has one.
    Raises ValueError when the named device is not there.
    """
    cuda = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device(cuda)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(cuda if name == "cuda" else name)
        if name not in ("cpu", "mps") and device.type != "cuda":
            raise RuntimeError("wanted cpu, mps, cuda or cuda:N")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not usable here ({reason}); use --device auto or cpu") from error
    return device


def make_adam(parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam over parameters on one device, as one fused kernel on CUDA and the CPU."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=parameters[0].device.type in ("cuda", "cpu"))


DEVICE = pick_device()

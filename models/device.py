"""Where a trial computes: the share of a GPU it was given, or the CPU."""

from __future__ import annotations

import os

import torch

from data.errors import UserError


class NoGPUError(UserError, RuntimeError):
    """A share of a GPU was given, but torch finds none."""


def device_of_share(gpus: float) -> torch.device:
    """The device for a share of a GPU; 0 is the CPU. From here on the process computes the same every time.

    Ray hands shares out but limits nothing, so the process is held to its share of the memory here.

    Raises:
        NoGPUError: torch cannot use a GPU; nothing is moved to the CPU unasked.
    """
    # cuBLAS adds up in one order only within memory set aside for it, which it looks for when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # which nothing here reads
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NoGPUError(
            f"the trial was given {gpus:g} of a GPU, but torch {torch.__version__} finds none: "
            "check the driver and that this torch is a CUDA build, or use --gpus-per-trial 0"
        )
    if gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus)
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """The name by which a record calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

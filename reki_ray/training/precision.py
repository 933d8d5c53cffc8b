"""Precision of HEIN in training, and compilation of the training step."""

from __future__ import annotations

import os
import shutil
from typing import Final, Literal

import torch
from torch import nn

from reki_ray.config.train import Precision
from reki_ray.errors import ConfigError

_COMPILERS: Final = ("g++", "clang++", "c++")


def compiled(model: nn.Module) -> nn.Module:
    """Compile a model at its first call, for training alone; it shares the parameters.

    Shapes are dynamic: the number of distinct ids differs between batches.

    Raises:
        ConfigError: There is no C++ compiler.
    """
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([wanted] if wanted else _COMPILERS)):
        raise ConfigError(
            f"torch.compile needs a C++ compiler: no {wanted or ' or '.join(_COMPILERS)} on PATH",
            where="train.compile",
            todo="Install g++ on all nodes, name yours in CXX, or set train.compile to false.",
        )
    network: object = torch.compile(model, dynamic=True)
    assert isinstance(network, nn.Module)  # its annotation is any callable
    return network


_WITH_BFLOAT16: Final = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")
"""Parts of the values of ONEDNN_MAX_CPU_ISA that leave oneDNN the units for bfloat16."""


def chosen_precision(wanted: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Precision of a run for the value of `train.precision`.

    On a GPU `auto` takes float32: HEIN's steps wait for Python, not for its products.
    """
    if wanted != "auto":
        return wanted
    return "bfloat16" if device.type == "cpu" and multiplies_bfloat16() else "float32"


EMULATED: Final = (
    "train.precision is bfloat16, which this processor emulates: several times as slow as float32. "
    "Set it to auto or float32."
)


def emulates(wanted: Precision, device: torch.device) -> bool:
    """Whether bfloat16 is requested on a processor without units for it: training is slower."""
    return wanted == "bfloat16" and device.type == "cpu" and not multiplies_bfloat16()


def multiplies_bfloat16() -> bool:
    """Whether this processor has units for bfloat16: AMX, AVX512-BF16, or those of ARM."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if not any(part in allowed for part in _WITH_BFLOAT16):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))

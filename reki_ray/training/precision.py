"""In which precision HEIN multiplies in training."""

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
    """A model that is compiled at its first call; parameters are those of the model given.

    Shapes differ from batch to batch with the number of distinct ids, so they stay symbols.

    Args:
        model: For training alone: evaluation would be compiled once more.

    Raises:
        ConfigError: There is no C++ compiler.
    """
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([wanted] if wanted else _COMPILERS)):
        raise ConfigError(
            f"there is no C++ compiler {wanted or ' or '.join(_COMPILERS)}, which torch.compile "
            "needs",
            where="train.compile",
            todo="Install g++ on all nodes, name yours in CXX, or set train.compile to false.",
        )
    # Of a module it makes a module, which its annotation does not tell.
    made: object = torch.compile(model, dynamic=True)
    assert isinstance(made, nn.Module)
    return made


_WITH_BFLOAT16: Final = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")

"""Parts of the values of ONEDNN_MAX_CPU_ISA that leave oneDNN the units for bfloat16."""


def chosen_precision(wanted: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Precision of a run.

    On a GPU `auto` takes float32: with HEIN the steps wait for Python, not for its products.

    Args:
        wanted: As `train.precision` has it.
        device: Where the run is trained.
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
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))

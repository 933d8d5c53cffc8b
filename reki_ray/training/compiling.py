"""torch.compile for the training step."""

from __future__ import annotations

import os
import shutil
from typing import Final

import torch
from torch import nn

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

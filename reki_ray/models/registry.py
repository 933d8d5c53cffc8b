"""Networks of the user's own, by import path."""

from __future__ import annotations

from torch import nn

from reki_ray.core.imports import load
from reki_ray.errors import ConfigError


def build_imported(path: str, *arguments: object, where: str, protocol: type) -> nn.Module:
    """Call the class at an import path.

    Args:
        path: As `package.module:Name`.
        *arguments: What it is called with.
        where: Key of the configuration that names it.
        protocol: What it must fulfil, for the message.

    Raises:
        ConfigError: There is no such class, or it makes no torch module.
    """
    made = load(path)(*arguments)
    if not isinstance(made, nn.Module):
        package = protocol.__module__.rpartition(".")[0]
        kind = protocol.__name__
        raise ConfigError(
            f"{kind.lower()} {path!r} made a {type(made).__name__}, not a torch module",
            where=where,
            todo=f"Name a torch.nn.Module that fulfils {package}.{kind}.",
        )
    return made

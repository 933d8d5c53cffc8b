"""Names of networks: built-in ones, or import paths."""

from __future__ import annotations

from collections.abc import Collection


def named_or_imported(kind: str, known: Collection[str], name: str) -> str:
    """Check that a name of some kind is known, or an import path `package.module:Name`.

    Raises:
        ValueError: It is neither.
    """
    module, _, attribute = name.partition(":")
    imported = attribute.isidentifier() and all(map(str.isidentifier, module.split(".")))
    if name not in known and not imported:
        raise ValueError(
            f"{name!r} is not a {kind}: name one of {', '.join(known)}, or your own class as "
            "package.module:Name"
        )
    return name

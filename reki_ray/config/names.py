"""Names of networks: those that there are, and import paths of the user's own."""

from __future__ import annotations

from collections.abc import Collection


def named_or_imported(kind: str, known: Collection[str], name: str) -> str:
    """A name, checked.

    Args:
        kind: What it names, for the message.
        known: Names that there are.
        name: One of these, or written as `package.module:Name`.

    Raises:
        ValueError: It is neither.
    """
    module, _, attribute = name.partition(":")
    imported = attribute.isidentifier() and all(map(str.isidentifier, module.split(".")))
    if name not in known and not imported:
        raise ValueError(
            f"{name!r} is no {kind}: name one of {', '.join(known)}, or a class of yours as "
            "package.module:Name"
        )
    return name

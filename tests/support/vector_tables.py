"""What tests read out of tables of vectors."""

from __future__ import annotations

import pyarrow as pa

from reki_ray.core.vectors import ENCODER_METADATA


def encoder_of(table: pa.Table) -> dict[str, str]:
    """Identity of the encoder of a table's vectors; empty if the table has none."""
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return {
        key.removeprefix(ENCODER_METADATA): value
        for key, value in metadata.items()
        if key.startswith(ENCODER_METADATA)
    }

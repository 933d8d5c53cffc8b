"""Keyed hashes of user ids for logs that do not need the id itself.

Without the key a log does not reveal whether it contains a user; with it, the exposures and events
of a user can be joined.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Final

from reki_ray.core import atomic
from reki_ray.errors import StoreError

_KEY_BYTES: Final = 32
_HASH_BYTES: Final = 16


class UserHasher:
    """Hashes user ids with a key of 16 to 64 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __call__(self, user_id: str) -> str:
        """Keyed BLAKE2b of a user id, 32 hexadecimal digits."""
        text = user_id.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=_HASH_BYTES, key=self._key).hexdigest()


def open_hasher(path: Path) -> UserHasher:
    """Open the hasher of a run's key file, which the first process creates for its owner only.

    Raises:
        StoreError: The file cannot be read or written, or is not a key.
    """
    try:
        if not path.exists():
            atomic.create_file(path, secrets.token_hex(_KEY_BYTES).encode("ascii"), mode=0o600)
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"the key of the user hashes cannot be read: {error.strerror or error}",
            where=str(path),
            todo="Check its permissions and the free disk space.",
        ) from error
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise StoreError(
            "the file does not contain a key",
            where=str(path),
            todo="Restore it from a copy, or delete it for a new key: hashes written so far then "
            "match no user.",
        )
    return UserHasher(key)

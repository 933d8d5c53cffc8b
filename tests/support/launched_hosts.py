"""Hosts for Ray's cluster launcher made of folders: its commands run here, with stubs for Docker.

Ray reaches a host by `ssh` and `rsync`, and a container on it by `docker exec`. The runner executes
what ssh would, `docker run` links its volumes, and `ray` writes down how it was called.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MOUNTS = "/tmp/ray_tmp_mount"  # where Ray puts file_mounts on a host
_RECORDER = """#!/bin/bash
echo "$(basename "$0") $*" >> "$HOST/calls"
"""
_DOCKER = """#!/bin/bash
echo "docker $*" >> "$HOST/docker"
case "$1" in
  run)
    touch "$HOST/running"
    while [ $# -gt 0 ]; do
      case "$1" in
        -v) mkdir -p "$(dirname "${2#*:}")"; ln -sfn "${2%%:*}" "${2#*:}"; shift ;;
        --env) echo "export $2" >> "$HOST/environment"; shift ;;
      esac
      shift
    done ;;
  exec)
    shift
    while [[ "$1" == -* ]]; do shift; done
    shift
    source "$HOST/environment"
    HOME="$HOST/container" PATH="$HOST/container/bin:$PATH" exec "$@" ;;
  inspect)
    case "$*" in
      *State.Running*) [ -f "$HOST/running" ] && echo true ;;
      *Config.Env*) echo "[\\"HOME=$HOST/container\\"]" ;;
    esac ;;
  login) cat > /dev/null ;;
esac
exit 0
"""
# Copies the file that Ray puts into a running container.
_RSYNC = """#!/bin/bash
target="${@: -1}"
cp -r "${@: -2:1}" "${target#*:}"
"""
_PYTHON = """#!/bin/bash
[ "$1 $2" = "-m venv" ] || exit 1
mkdir -p "$3/bin"
for name in pip python hf ray reki; do cp "$HOST/recorder" "$3/bin/$name"; done
"""


@dataclass
class LaunchedHosts:
    """Stands for the module `subprocess` in Ray's command runners.

    Args:
        root: Empty folder.
        baked: Whether the image has the environment.
    """

    root: Path
    baked: bool = True
    failures: list[str] = field(default_factory=list)

    def host(self, address: str) -> Path:
        """Folder of a host, set up at the first call."""
        host = self.root / address
        if not host.exists():
            commands = {"docker": _DOCKER, "rsync": _RSYNC, "aws": _RECORDER, "gcloud": _RECORDER}
            inside = dict.fromkeys(("apt-get", "sudo", "pip"), _RECORDER) | {"python3": _PYTHON}
            for folder, scripts in (("bin", commands), ("container/bin", inside)):
                for name, text in scripts.items():
                    _script(host / folder / name, text)
            _script(host / "recorder", _RECORDER)
            if self.baked:
                for name in ("ray", "reki"):
                    _script(host / "container/venv/bin" / name, _RECORDER)
            # A login shell sets PATH anew.
            _script(host / "home/.profile", 'export PATH="$HOST/bin:$PATH"\n')
            _script(host / "container/.profile", 'export PATH="$HOST/container/bin:$PATH"\n')
            (host / "environment").touch()
        return host

    def calls(self, address: str) -> list[str]:
        """Calls of the stubs on a host, in order, as `ray start --head`."""
        return (self.root / address / "calls").read_text(encoding="utf-8").splitlines()

    def docker(self, address: str, command: str) -> list[str]:
        """Calls of one command of Docker on a host, such as `run`."""
        lines = (self.root / address / "docker").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith(f"docker {command} ")]

    def check_call(self, command: list[str], *_: Any, **__: Any) -> int:
        """Run a command of Ray's; see `subprocess.check_call`."""
        self.check_output(command)
        return 0

    def check_output(self, command: list[str], *_: Any, **__: Any) -> bytes:
        """Run a command of Ray's; see `subprocess.check_output`."""
        if command[0] == "rsync":
            self._rsync(command)
            return b""
        at = next(i for i, part in enumerate(command) if "@" in part and i > 1)
        host = self.host(command[at].partition("@")[2])
        shell = " ".join(command[at + 1 :]).replace(_MOUNTS, f"{host}/mounts")
        environment = {
            "HOME": str(host / "home"),
            "HOST": str(host),
            "PATH": f"{host}/bin:{os.environ['PATH']}",
            "USER": "ubuntu",
        }
        done = subprocess.run(
            ["bash", "-c", _as_this_user(shell)],
            env=environment,
            cwd=host / "home",
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            self.failures.append(f"{shell}: {done.stderr.decode()}")
            raise subprocess.CalledProcessError(done.returncode, command)
        return done.stdout

    def _rsync(self, command: list[str]) -> None:
        excluded = [
            command[i + 1].rpartition("/")[2]
            for i, part in enumerate(command)
            if part == "--exclude"
        ]
        source, (address, _, path) = command[-2], command[-1].partition("@")[2].partition(":")
        target = Path(path.replace(_MOUNTS, f"{self.host(address)}/mounts"))
        if source.endswith("/"):
            shutil.copytree(
                source,
                target,
                ignore=lambda _, names: [
                    name for name in names if any(fnmatch.fnmatch(name, e) for e in excluded)
                ],
                dirs_exist_ok=True,
            )
        else:
            shutil.copy(source, target)


def _as_this_user(shell: str) -> str:
    """Leave out the change of owner, which only the host's own user may make."""
    return shell.replace("chown -R ubuntu", "true")


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)

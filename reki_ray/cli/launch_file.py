"""A file of Ray's cluster launcher, and commands on the hosts that it names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reki_ray.config.files import read_mapping
from reki_ray.errors import ConfigError, EngineError

_EXIT: Final = "reki-exit="
_SSH: Final = (
    *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR"),
    # As Ray's launcher does: hosts of a cluster come and go.
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
)


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    output: str
    errors: str = ""


@dataclass(frozen=True)
class LaunchFile:
    """A file for `ray up`.

    Attributes:
        path: The file.
        content: What is in it.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> LaunchFile:
        """Read a file.

        Raises:
            ConfigError: It is missing, not YAML, or not for Ray's cluster launcher.
        """
        content = read_mapping(path, todo="Name a file such as launch/on-premises.yaml.")
        file = cls(path, content)
        missing = [key for key in ("cluster_name", "provider", "auth") if not content.get(key)]
        if missing:
            raise ConfigError(
                f"not a file of Ray's cluster launcher: {', '.join(missing)} is missing",
                where=str(path),
                todo="Start from launch/on-premises.yaml or cluster.yaml.",
            )
        if file.local and not ("head_ip" in file._provider and "worker_ips" in file._provider):
            raise ConfigError(
                "provider local needs head_ip and worker_ips",
                where=f"{path}: provider",
                todo="Name the hosts, as launch/on-premises.yaml does.",
            )
        return file

    @property
    def _provider(self) -> dict[str, Any]:
        provider: dict[str, Any] = self.content["provider"]
        return provider

    @property
    def local(self) -> bool:
        """Whether the hosts are machines of one's own."""
        return bool(self._provider.get("type") == "local")

    @property
    def hosts(self) -> list[str]:
        """Hosts of provider local, the head first; empty for a cloud."""
        if not self.local:
            return []
        return [str(self._provider["head_ip"]), *map(str, self._provider["worker_ips"])]

    @property
    def nodes(self) -> int:
        """Nodes that must be there after the launch: the head and the minimum of workers."""
        if self.local:
            workers = len(self.hosts) - 1
            limits = (self.content.get(key, workers) for key in ("min_workers", "max_workers"))
            return 1 + min(workers, *map(int, limits))
        types = self.content.get("available_node_types") or {}
        head = self.content.get("head_node_type")
        return 1 + sum(
            int(kind.get("min_workers", 0)) for name, kind in types.items() if name != head
        )

    @property
    def programs(self) -> str:
        """Folder of ray, python and reki on the hosts, with a slash; empty: they are in PATH."""
        commands = " ".join(self.content.get("head_start_ray_commands") or [])
        found = re.search(r"(\S*/)ray start\b", commands)
        return found[1] if found else ""

    @property
    def directory(self) -> str:
        """Folder of reki-ray on the hosts, in which its commands run."""
        root, found, _ = self.programs.partition(".venv/bin/")
        return (root if found else "") or "~"

    @property
    def state_folder(self) -> str | None:
        """Folder of the head in which the cluster's state survives, if the file names one."""
        commands = " ".join(self.content.get("head_start_ray_commands") or [])
        found = re.search(r"\bRAY_gcs_storage_path=([\w$~/.-]+)", commands)
        return found[1] if found else None

    def ray(self, *arguments: str, capture: bool = False) -> Answer:
        """Run a command of Ray's cluster launcher, as `up` or `exec`."""
        done = subprocess.run(
            self.ray_command(*arguments),
            env=self.environment,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else sys.stderr,
            stderr=subprocess.PIPE if capture else None,
            text=True,
            errors="replace",
        )
        output, errors = ((text or "").replace("\r", "") for text in (done.stdout, done.stderr))
        return Answer(done.returncode, output, errors)

    def ray_command(self, name: str, *arguments: str) -> list[str]:
        """Command line of a command of Ray's cluster launcher."""
        return [sys.executable, "-m", "ray.scripts.scripts", name, str(self.path), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Variables for Ray's cluster launcher."""
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        if self.local:
            # Autoscaler v2 never starts the last worker of provider local (Ray 2.60).
            environment["RAY_UP_enable_autoscaler_v2"] = "0"
        return environment

    def on_head(self, command: str) -> Answer:
        """Run a shell command on the head, in a container if the file names one.

        Raises:
            EngineError: The head cannot be reached.
        """
        answer = self.ray("exec", f"({command}); printf '\\n{_EXIT}%s\\n' $?", capture=True)
        # Ray prints the command as well, with %s for the number.
        code = re.search(rf"^{_EXIT}(\d+)", answer.output, re.MULTILINE)
        if code is None:
            raise EngineError(
                f"the head cannot be reached: {_last_line(answer.errors)}",
                where=str(self.path),
                todo="Start the cluster with `reki launch up`, and check the network and the key.",
            )
        return Answer(int(code[1]), answer.output[: code.start()])

    def on_host(self, host: str, command: str) -> Answer:
        """Run a shell command on a host of provider local; the exit code is 255 without SSH."""
        auth = self.content["auth"]
        arguments = ["ssh", *_SSH]
        if auth.get("ssh_private_key"):
            arguments += ["-i", str(Path(auth["ssh_private_key"]).expanduser())]
        if auth.get("ssh_proxy_command"):
            arguments += ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"]
        done = subprocess.run(
            [*arguments, f"{auth['ssh_user']}@{host}", f"bash -lc {shlex.quote(command)}"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        return Answer(done.returncode, done.stdout + done.stderr)


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"

"""Hosts made of Linux namespaces on a bridge, each with an SSH server and a disk of its own.

A host has private network, mount, PID and UTS namespaces, a private /root, /tmp, /run, /var/tmp and
/dev/shm, and sees the rest of the machine. All hosts are children of the test process: they end
with it, however it ends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
OPERATOR: Final = "op"
ADDRESSES: Final = {
    OPERATOR: "10.77.0.254",
    "head": "10.77.0.1",
    "worker1": "10.77.0.2",
    "worker2": "10.77.0.3",
}
_PACKAGES: Final = ("openssh-server", "openssh-sftp-server", "libwrap0", "rsync", "libpopt0")
_TOOLS: Final = ("unshare", "nsenter", "setpriv", "ip", "bash", "ssh", "ssh-keygen")
_LIBRARIES: Final = "/run/packages/usr/lib/x86_64-linux-gnu:/run/packages/lib/x86_64-linux-gnu"
_PRIVATE: Final = ("/root", "/tmp", "/run", "/var/tmp")

# PID 1 of a host. Its folders are mounted over the machine's last, as they hide the state folder.
_INIT: Final = r"""
set -eu
mount --make-rprivate /
mount -t proc proc /proc
hostname "$NAME"
mkdir -p "$STATE"/run/sshd
chmod 1777 "$STATE"/tmp "$STATE"/var/tmp
chmod 700 "$STATE"/root "$STATE"/root/.ssh
for folder in $VISIBLE; do  # what the host needs of a folder that it hides
  mkdir -p "$STATE$folder"
  mount --bind "$folder" "$STATE$folder"
  mount -o remount,bind,ro "$STATE$folder"
done
cp -r "$PACKAGES" "$STATE"/run/packages
for file in passwd hosts resolv.conf; do
  mount --bind "$STATE/etc/$file" "/etc/$file"
done
mount -t tmpfs -o size=1g shm /dev/shm
for folder in /root /run /var/tmp /tmp; do
  mount --rbind "$STATE$folder" "$folder"
done
cd /
ip link set lo up
until ip -4 -o address show eth0 2>/dev/null | grep -q inet; do sleep 0.05; done
if [ "$NAME" != op ]; then
  LD_LIBRARY_PATH="$LIBRARIES" "$SSHD" -D -e -f /run/sshd_config 2>/run/sshd.log &
fi
touch /run/ready
while :; do sleep 3600 & wait $! || true; done
"""

_SSHD_CONFIG: Final = """
ListenAddress {address}
HostKey /run/ssh_host_key
PidFile none
AuthorizedKeysFile /root/.ssh/authorized_keys
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
MaxStartups 50
MaxSessions 50
Subsystem sftp internal-sftp
"""


def missing() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root, to create namespaces"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)}"
    if shutil.which("sshd") is None and shutil.which("apt-get") is None:
        return "needs sshd and rsync, or apt-get to unpack them"
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "sh", "-c",
         "ip link add trial0 type bridge && ip link add trial1 type veth peer name trial2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if trial.returncode != 0:
        return f"needs network, mount and PID namespaces, bridges and veth: {trial.stderr.strip()}"
    return None


def packages() -> Path:
    """Folder with unpacked Debian packages of sshd and rsync; nothing is installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "reki-tests"
    root = cache / "packages"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            wanted = [*_PACKAGES]
            subprocess.run(
                ["apt-get", "download", *wanted], cwd=folder, check=True, capture_output=True
            )
            unpacked = Path(folder) / "root"
            for package in Path(folder).glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, unpacked], check=True)
            with suppress(OSError):  # another process was faster
                unpacked.rename(root)
    return root


@dataclass(frozen=True)
class Host:
    """One host.

    Attributes:
        name: Its name, also its host name.
        address: Its IP address.
        pid: Process id of its init on this machine.
        state: Folder whose root, tmp, run and var/tmp the host sees as its own.
    """

    name: str
    address: str
    pid: int
    state: Path

    def command(self, command: str) -> list[str]:
        """Arguments that run a shell command on the host."""
        environment = {
            "HOME": "/root",
            "USER": "root",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        }
        assignments = [f"{name}={value}" for name, value in environment.items()]
        enter = ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "-i", "env", "-i"]
        return [*enter, *assignments, "bash", "-lc", command]

    def run(
        self, command: str, *, check: bool = True, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host; its output is part of a failure's message."""
        done = subprocess.run(
            self.command(command), capture_output=True, text=True, check=False, timeout=timeout
        )
        if check:
            assert done.returncode == 0, (
                f"{self.name}: {command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def start(self, command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a shell command on the host."""
        return subprocess.Popen(self.command(command), text=True, **options)

    def path(self, path: str) -> Path:
        """Where a file of the host's /root, /tmp, /run or /var/tmp is on this machine."""
        assert path.startswith(_PRIVATE), f"{path} is not private to {self.name}"
        return Path(f"{self.state}{path}")

    def processes(self) -> list[str]:
        """Command lines of the processes of the host, without its init, sshd and shells."""
        found = []
        listed = self.run("ps -eo pid=,args=").stdout.splitlines()
        for line in listed:
            if any(word in line for word in ("raylet", "gcs_server", "ray::", "/ray/")):
                found.append(line.strip())
        return found


class Hosts(Mapping[str, Host]):
    """All hosts by name, and the links between them."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self._hosts = hosts

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    @property
    def operator(self) -> Host:
        """The host from which a person works; the bridge is there."""
        return self[OPERATOR]

    def cut(self, name: str) -> None:
        """Cut a host off the network."""
        _network(self.operator.pid, f"ip link set v-{name} down")

    def heal(self, name: str) -> None:
        """Connect a host again."""
        _network(self.operator.pid, f"ip link set v-{name} up")


@contextmanager
def hosts(
    shared: Mapping[str, Path] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Hosts]:
    """Run an operator's host, a head and two workers in the block.

    Args:
        shared: Folders of this machine that all hosts see, as a mounted share, by their path there.
        environment: Variables of every login shell and SSH session.
    """
    folder = Path(tempfile.mkdtemp(prefix="reki-hosts-", dir="/tmp"))  # mounted over last
    started: list[subprocess.Popen[bytes]] = []
    try:
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        found: dict[str, Host] = {}
        for name, address in ADDRESSES.items():
            state = folder / name
            _prepare(state, name, address, key, environment or {})
            process = _start(name, state, shared or {})
            started.append(process)
            found[name] = Host(name, address, _child(process), state)
        _connect(found)
        for host in found.values():
            _wait_until_ready(host)
        yield Hosts(found)
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
        _remove(folder)


def _prepare(
    state: Path, name: str, address: str, key: Path, environment: Mapping[str, str]
) -> None:
    for private in (*_PRIVATE, "/etc", "/root/.ssh"):
        Path(f"{state}{private}").mkdir(parents=True, exist_ok=True)
    public = key.with_suffix(".pub").read_text(encoding="utf-8")
    (state / "root/.ssh/authorized_keys").write_text(public, encoding="utf-8")
    if name == OPERATOR:
        shutil.copy(key, state / "root/.ssh/id_ed25519")
        (state / "root/.ssh/id_ed25519").chmod(0o600)
    accounts = Path("/etc/passwd").read_text(encoding="utf-8")
    if "\nsshd:" not in accounts:
        accounts += "sshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n"
    (state / "etc/passwd").write_text(accounts, encoding="utf-8")
    (state / "etc/hosts").write_text(f"127.0.0.1 localhost\n{address} {name}\n", encoding="utf-8")
    (state / "etc/resolv.conf").touch()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", state / "run/ssh_host_key"],
        check=True,
    )
    config = _SSHD_CONFIG.format(address=address)
    (state / "run/sshd_config").write_text(config, encoding="utf-8")
    # The checkout with an environment, as `make setup` leaves it on a real host.
    installed = state / "root/reki-ray"
    installed.mkdir()
    for entry in REPOSITORY.iterdir():
        if entry.name not in {".git", ".venv", "runs"}:
            (installed / entry.name).symlink_to(entry)
    (installed / ".venv").symlink_to(sys.prefix)
    if shutil.which("rsync") is None:
        (state / "root/bin").mkdir()
        wrapper = state / "root/bin/rsync"
        wrapper.write_text(
            f'#!/bin/sh\nLD_LIBRARY_PATH={_LIBRARIES} exec /run/packages/usr/bin/rsync "$@"\n',
            encoding="utf-8",
        )
        wrapper.chmod(0o755)
    exported = {
        "PATH": f"{sys.prefix}/bin:/root/bin:$PATH",
        "PYTHONPATH": str(REPOSITORY),
        **environment,
    }
    lines = "".join(f'export {variable}="{value}"\n' for variable, value in exported.items())
    for file in (".bashrc", ".profile"):
        (state / "root" / file).write_text(lines, encoding="utf-8")


def _start(name: str, state: Path, shared: Mapping[str, Path]) -> subprocess.Popen[bytes]:
    needed = {Path(sys.prefix), Path(sys.base_prefix), REPOSITORY}
    visible = [
        str(path) for path in needed if str(path).startswith(tuple(f"{p}/" for p in _PRIVATE))
    ]
    mounts = "".join(
        f"mkdir -p {shlex.quote(f'{state}{there}')}; "
        f"mount --bind {shlex.quote(str(here))} {shlex.quote(f'{state}{there}')}\n"
        for there, here in shared.items()
    )
    first, _, rest = _INIT.partition("for folder in $VISIBLE")
    script = f"{first}{mounts}for folder in $VISIBLE{rest}"
    variables = {
        "NAME": name,
        "STATE": str(state),
        "VISIBLE": " ".join(visible),
        "PACKAGES": str(packages()),
        "LIBRARIES": _LIBRARIES,
        "SSHD": shutil.which("sshd") or "/run/packages/usr/sbin/sshd",
    }
    unshare = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    with (state / "log").open("wb") as log:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, "bash", "-c", script],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _child(process: subprocess.Popen[bytes]) -> int:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = listed.read_text(encoding="ascii").split()
        if children:
            return int(children[0])
        time.sleep(0.02)
    raise AssertionError("unshare has no child")


def _network(pid: int, command: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", *command.split()], check=True)


def _connect(found: Mapping[str, Host]) -> None:
    operator = found[OPERATOR]
    _network(operator.pid, "ip link add eth0 type bridge")
    _network(operator.pid, "ip link set eth0 up")
    for name, host in found.items():
        if name == OPERATOR:
            continue
        _network(operator.pid, f"ip link add v-{name} type veth peer name eth0 netns {host.pid}")
        _network(operator.pid, f"ip link set v-{name} master eth0 up")
        _network(host.pid, f"ip address add {host.address}/24 dev eth0")
        _network(host.pid, "ip link set eth0 up")
        _network(host.pid, f"ip route add default via {operator.address}")
    _network(operator.pid, f"ip address add {operator.address}/24 dev eth0")


def _wait_until_ready(host: Host) -> None:
    deadline = time.monotonic() + 60
    while not host.path("/run/ready").exists():
        if time.monotonic() > deadline:
            log = (host.state / "log").read_text(encoding="utf-8", errors="replace")
            raise AssertionError(f"{host.name} is not ready: {log}")
        time.sleep(0.05)


def _remove(folder: Path) -> None:
    # The kernel takes a moment to end the namespaces and their mounts.
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{folder} cannot be removed")

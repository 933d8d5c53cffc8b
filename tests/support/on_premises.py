"""A cluster on hosts of namespaces, launched by launch/on-premises.yaml, with an S3 server."""

from __future__ import annotations

import csv
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.hosts import ADDRESSES, OPERATOR, REPOSITORY, Host, Hosts, hosts

BUCKET: Final = "bucket"
WORKSPACE: Final = f"s3://{BUCKET}/runs/tiny"
S3_PORT: Final = 5000
USERS, ITEMS = 40, 60
PROMPTS: Final = USERS + ITEMS
"""Mode individual: one per user and item."""
LAUNCH: Final = "/root/cluster.yaml"
CONFIG: Final = "/root/tiny.yaml"
_SITE: Final = Path(__file__).with_name("host_site")
_S3: Final = {
    "AWS_ENDPOINT_URL": f"http://{ADDRESSES[OPERATOR]}:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_CLIENT_ENVIRONMENT: Final = {
    **_S3,
    "PYTHONPATH": f"{_SITE}:{REPOSITORY}",
    "REKI_TOKEN": "t" * 32,
    "REKI_ADMIN_TOKEN": "a" * 32,
}


class OnPremises:
    """What a person at the operator's host does.

    Args:
        found: The hosts.
    """

    def __init__(self, found: Hosts) -> None:
        self.hosts = found
        self.operator = found.operator

    def reki(self, *arguments: str, check: bool = True, timeout: float = 600) -> tuple[int, str]:
        """Run a command of reki; returns its exit code and output."""
        command = shlex.join(["reki", *arguments])
        done = self.operator.run(f"cd && {command}", check=check, timeout=timeout)
        return done.returncode, done.stdout + done.stderr

    def submit(self, *arguments: str, check: bool = True) -> tuple[int, str]:
        """Run a command of reki as a job of the cluster."""
        return self.reki("submit", LAUNCH, "--", *arguments, "--config", CONFIG, check=check)

    def nodes(self) -> dict[str, bool]:
        """Whether the node of each address is alive."""
        done = self.operator.run(f"reki launch status {LAUNCH} --json", check=False)
        start = done.stdout.find("[")
        if start < 0:
            return {}
        return {node["address"]: node["alive"] for node in json.loads(done.stdout[start:])}

    def python(self, host: Host, code: str, *, timeout: float = 300) -> Any:
        """Run Python on a host; the last line that it prints is JSON."""
        done = host.run(f"python -c {shlex.quote(code)}", timeout=timeout)
        return json.loads(done.stdout.strip().splitlines()[-1])

    def calls(self) -> dict[str, dict[str, list[float]]]:
        """Times at which the scripted engine was asked each prompt, by host."""
        found: dict[str, dict[str, list[float]]] = {}
        for name, host in self.hosts.items():
            file = host.path("/root/calls")
            for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
                prompt, at, _ = line.split()
                found.setdefault(name, {}).setdefault(prompt, []).append(float(at))
        return found


@contextmanager
def on_premises() -> Iterator[OnPremises]:
    """Hosts with a launch file, a configuration, data, and an S3 server; no cluster yet."""
    with hosts(environment=_CLIENT_ENVIRONMENT) as found:
        operator = found.operator
        _write(operator, LAUNCH, launch_file())
        _write(operator, CONFIG, configuration())
        for host in found.values():
            write_data(host.path("/root/data"))
        with operator.path("/tmp/s3.log").open("wb") as log:
            operator.start(
                f"exec python -m moto.server -H {operator.address} -p {S3_PORT}",
                stdout=log,
                stderr=log,
            )
        wait_for(
            lambda: (
                operator.run(
                    "python -c 'import s3fs; s3fs.S3FileSystem().mkdir(\"bucket\")'", check=False
                ).returncode
                == 0
            ),
            "the S3 server",
        )
        yield OnPremises(found)


def launch_file() -> dict[str, Any]:
    """launch/on-premises.yaml for these hosts, which have the sources and small memory."""
    path = REPOSITORY / "launch/on-premises.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    workers = [ip for name, ip in ADDRESSES.items() if name.startswith("worker")]
    content["provider"] |= {"head_ip": ADDRESSES["head"], "worker_ips": workers}
    content["auth"]["ssh_user"] = "root"
    content["setup_commands"] = []
    del content["file_mounts"]["~/reki-ray"]
    # The raylet sees the memory of the whole machine.
    content["head_start_ray_commands"][-1] += (
        " --num-cpus=2 --memory=3000000000 --object-store-memory=200000000"
    )
    content["worker_start_ray_commands"][-1] += (
        " --num-cpus=2 --memory=2000000000 --object-store-memory=200000000"
    )
    return content


def configuration() -> dict[str, Any]:
    """A small run on S3: scripted engine, hashed texts, two encoders, two training workers."""
    return {
        "name": "tiny",
        "workspace": WORKSPACE,
        "data": {
            "source": {
                "kind": "csv",
                "interactions": "/root/data/interactions.csv",
                "items": "/root/data/items.csv",
                "users": "/root/data/users.csv",
                "columns": {"item_attributes": ["genre"], "user_attributes": ["gender"]},
            }
        },
        "split": {"prompt_history": 8},
        "cluster": {"dimensions": 4},
        "extract": {
            "engine": {"kind": "scripted", "seconds": 1.0},
            "mode": "individual",
            "unit_rows": 2,
            "min_replicas": 3,
            "max_replicas": 5,
        },
        "encode": {"backend": "hashing", "dimension": 32, "min_replicas": 2, "max_replicas": 2},
        "train": {
            "epochs": 2,
            "batch_size": 64,
            "seeds": [0],
            "arms": ["fair_base", "reki_i"],
            "workers": 2,
        },
        "evaluate": {"bootstrap": 100},
        "serve": {
            "host": "0.0.0.0",
            "node_resource": "serving",
            "edge": {"request_logs": False},
            "measure_candidates": 10,
            "measure_requests": 10,
        },
    }


def write_data(folder: Path) -> None:
    """Users who like every fourth item, as three CSV files."""
    folder.mkdir(parents=True, exist_ok=True)
    genres = ("Action", "Comedy", "Drama", "Horror")
    tables: Mapping[str, list[list[Any]]] = {
        "items.csv": [
            ["item_id", "title", "genre"],
            *([f"m{i}", f"{genres[i % 4]} film {i}", genres[i % 4]] for i in range(ITEMS)),
        ],
        "users.csv": [
            ["user_id", "gender"],
            *([f"u{u}", "FM"[u % 2]] for u in range(USERS)),
        ],
        "interactions.csv": [
            ["user_id", "item_id", "rating", "timestamp"],
            *(
                [f"u{u}", f"m{item}", 5 if item % 4 == u % 4 else 2, 1_700_000_000 + 1000 * s + u]
                for u in range(USERS)
                for s, item in enumerate((u * 7 + step * 11) % ITEMS for step in range(24))
            ),
        ],
    }
    for name, rows in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


def wait_for(happened: Callable[[], Any], what: str, seconds: float = 120) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not in {seconds:.0f} s"
        time.sleep(1)


def _write(host: Host, path: str, content: dict[str, Any]) -> None:
    host.path(path).write_text(yaml.safe_dump(content), encoding="utf-8")

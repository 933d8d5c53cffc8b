"""Commands of `reki launch`: what Ray's cluster launcher leaves undone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import BaseModel
from rich.table import Table

from reki_ray.cli.cluster_nodes import MARK
from reki_ray.cli.launch_file import LaunchFile
from reki_ray.cli.options import JsonOption, show
from reki_ray.core.formats import counted
from reki_ray.core.progress import Reporter
from reki_ray.errors import EngineError

_RAY_PROCESSES: Final = ("raylet", "gcs_server")
_SSH_FAILED: Final = 255

FileArgument = Annotated[
    Path, typer.Argument(help="File of Ray's cluster launcher, as launch/on-premises.yaml.")
]

app = typer.Typer(
    help="Start, check and stop a cluster over SSH or on a cloud.", no_args_is_help=True
)


class Node(BaseModel):
    """A node of the running cluster, or a host that is missing in it."""

    address: str
    alive: bool
    head: bool = False
    cpus: float = 0.0
    gpus: float = 0.0


class Stopped(BaseModel):
    """A host after `reki launch down`."""

    host: str
    left: list[str]
    """Processes of Ray that still run."""
    error: str = ""
    """Why it could not be checked; empty if it was."""


@app.command()
def up(
    file: FileArgument,
    attempts: Annotated[int, typer.Option(min=1, help="Starts of the head before giving up.")] = 3,
    wait_minutes: Annotated[
        float, typer.Option(min=0, help="Time for all nodes to join, after the head's start.")
    ] = 10,
    restart: Annotated[
        bool,
        typer.Option(help="Restart Ray on a head that runs; --no-restart keeps running jobs."),
    ] = True,
) -> None:
    """Start a cluster, wait for its nodes and check them; repeat it to bring a lost head back."""
    launch, reporter = LaunchFile.read(file), Reporter()
    subprocess.run(  # keeps a token that is there
        [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = time.monotonic()
    nodes = _start(launch, reporter, attempts, wait_minutes * 60, restart=restart)
    missing = [node.address for node in nodes if not node.alive]
    alive = sum(node.alive for node in nodes)
    if alive < launch.nodes:
        names = f": {', '.join(missing)} did not join" if missing else ""
        raise EngineError(
            f"{alive} of {counted(launch.nodes, 'node')} after {wait_minutes:g} minutes{names}",
            where=str(file),
            todo="Read ~/ray_bootstrap_config.yaml and /tmp/ray/session_latest/logs/monitor.* on "
            "the head: they say which command failed on a host. Then run this command again.",
        )
    reporter.say(
        f"launch: {counted(alive, 'node')} after {time.monotonic() - started:.0f} s; checking"
    )
    checked = launch.on_head(
        f"cd {launch.directory} && RAY_ADDRESS=auto {launch.programs}reki doctor --cluster"
    )
    sys.stdout.write(checked.output)
    raise typer.Exit(checked.code)


@app.command()
def status(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show the nodes of a running cluster, and which hosts are missing."""
    launch = LaunchFile.read(file)
    nodes = _nodes(launch, 0, 0)
    table = Table("node", "state", "CPUs", "GPUs")
    for node in nodes:
        state = "missing" if not node.alive else "head" if node.head else "alive"
        table.add_row(node.address, state, f"{node.cpus:g}", f"{node.gpus:g}")
    show(table, nodes, as_json=as_json)
    if sum(node.alive for node in nodes) < launch.nodes:
        raise typer.Exit(EngineError.exit_code)


@app.command()
def down(file: FileArgument, as_json: JsonOption = False) -> None:
    """Stop a cluster, also the workers on premises that `ray down` leaves running."""
    launch, reporter = LaunchFile.read(file), Reporter()
    code = launch.ray("down", "--yes").code
    if not launch.local:
        raise typer.Exit(EngineError.exit_code if code else 0)
    with ThreadPoolExecutor(max_workers=16) as pool:
        stopped = list(pool.map(lambda host: _stop(launch, host), launch.hosts))
    table = Table("host", "state")
    for host in stopped:
        table.add_row(host.host, host.error or ("; ".join(host.left) or "stopped"))
    show(table, stopped, as_json=as_json)
    if any(host.error or host.left for host in stopped):
        reporter.say("launch: some hosts are not stopped; repeat the command when they answer")
        raise typer.Exit(EngineError.exit_code)


def _start(
    launch: LaunchFile, reporter: Reporter, attempts: int, seconds: float, *, restart: bool
) -> list[Node]:
    """Run `ray up` until the head answers, then wait for the nodes."""
    options = ["--yes", *([] if restart else ["--no-restart"])]
    for attempt in range(1, attempts + 1):
        # A head dies under load if its agent takes over 15 s (ray#65983), and `ray up` may even
        # exit with 0 then. It can be repeated.
        failure = "ray up failed"
        if launch.ray("up", *options).code == 0:
            try:
                return _nodes(launch, launch.nodes, seconds)
            except EngineError as error:
                failure = error.what
        reporter.say(f"launch: attempt {attempt} of {attempts}: {failure}")
    raise EngineError(
        f"the head does not start in {counted(attempts, 'attempt')}",
        where=str(launch.path),
        todo="Correct what `ray up` reports above; if the head was too slow, run again.",
    )


def _nodes(launch: LaunchFile, count: int, seconds: float) -> list[Node]:
    """Nodes as the head has them, and hosts of the file that are not among them.

    Raises:
        EngineError: The head cannot be reached, or no cluster runs there.
    """
    answer = launch.on_head(
        f"cd {launch.directory} && "
        f"{launch.programs}python -m reki_ray.cli.cluster_nodes {count} {seconds:.0f}"
    )
    _, found, rest = answer.output.rpartition(MARK)
    if not found:
        lines = answer.output.strip().splitlines() or ["no output"]
        raise EngineError(
            f"no cluster runs on the head: {lines[-1]}",
            where=str(launch.path),
            todo="Start it with `reki launch up`.",
        )
    nodes = [Node(alive=True, **node) for node in json.loads(rest.splitlines()[0])]
    known = {node.address for node in nodes}
    missing = [Node(address=host, alive=False) for host in launch.hosts if host not in known]
    return sorted(nodes, key=lambda node: (not node.head, node.address)) + missing


def _stop(launch: LaunchFile, host: str) -> Stopped:
    command = f"{launch.programs}ray stop --force >/dev/null 2>&1"
    if host == launch.hosts[0] and launch.state_folder:
        # The next cluster starts afresh. Only what Ray's database wrote is removed.
        folder = launch.state_folder
        command += f"; test -e {folder}/session_name && rm -r {folder}"
    listings = "; ".join(f"pgrep -l -u $(id -u) -x {name}" for name in _RAY_PROCESSES)
    answer = launch.on_host(host, f"{command}; {listings}; true")
    if answer.code == _SSH_FAILED:
        return Stopped(host=host, left=[], error=f"unreachable: {answer.output.strip()[-200:]}")
    return Stopped(host=host, left=[line[:80] for line in answer.output.splitlines() if line])

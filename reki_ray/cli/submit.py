"""`reki submit`: a command of reki as a job of a running cluster, once however often it is sent."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml

from reki_ray.cli.launch import FileArgument
from reki_ray.cli.launch_file import LaunchFile
from reki_ray.config import load_config
from reki_ray.config.files import read_mapping
from reki_ray.core.ray_cluster import set_environment
from reki_ray.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_DASHBOARD_PORT: Final = 8265
_CONNECT_SECONDS: Final = 90.0
_LOST_SECONDS: Final = 600.0
"""Time without a connection to the head after which a submission gives up following."""
_FOLDER: Final = "~/.reki/submitted"

app = typer.Typer()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    file: FileArgument,
    again: Annotated[
        bool, typer.Option("--again", help="Run again what has succeeded before.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once the job is submitted.")
    ] = False,
) -> None:
    """Run a command of reki on a cluster: reki submit FILE -- run --config my.yaml.

    The configuration is sent along; its paths, and other files of the command, are those of the
    head. The same command with the same configuration is the same job: repeated, it follows the
    job that runs, or shows the one that succeeded. One that failed runs again.
    """
    launch = LaunchFile.read(file)
    if not context.args:
        raise ConfigError(
            "there is no command to run",
            where="command line",
            todo="Name one after --, as `reki submit FILE -- run --config my.yaml`.",
        )
    arguments, config = _take_config(context.args)
    digest = hashlib.sha256(json.dumps([arguments, config]).encode()).hexdigest()[:12]
    name = f"reki-{digest}"
    if config is not None:
        remote = f"{_FOLDER}/{name}.yaml"
        encoded = base64.b64encode(config.encode()).decode()
        written = launch.on_head(
            f"mkdir -p {_FOLDER} && echo {encoded} | base64 -d > {remote}.new && "
            f"mv {remote}.new {remote}"
        )
        if written.code != 0:
            raise EngineError(
                f"the configuration cannot be written: {written.output.strip()[-200:]}",
                where=f"{remote} on the head",
                todo="Free some disk there, or correct the rights of the folder.",
            )
    command = " ".join(
        remote if argument is None else shlex.quote(argument) for argument in arguments
    )
    entrypoint = f"cd {launch.directory} && exec {launch.programs}reki {command}"
    with _dashboard(launch) as client:
        job = _submit(client, name, entrypoint, again=again)
        if detach:
            return
        raise typer.Exit(_follow(client, job))


def _take_config(arguments: list[str]) -> tuple[list[str | None], str | None]:
    """Replace the file of --config by None; returns its content, checked and complete."""
    taken: list[str | None] = []
    path: str | None = None
    rest = iter(arguments)
    for argument in rest:
        if argument in {"--config", "-c"}:
            path = next(rest, None)
            taken += [argument, None]
        elif argument.startswith("--config="):
            path = argument.partition("=")[2]
            taken += ["--config", None]
        else:
            taken.append(argument)
    if path is None:
        return taken, None
    loaded = load_config(path)  # errors here, rather than in the job's log
    content = read_mapping(Path(path), todo="Name a readable YAML file with --config.")
    if isinstance(content.get("train"), dict) and "tuned" in content["train"]:
        # A file beside the configuration, which the head does not have.
        content["train"]["tuned"] = loaded.model_dump(mode="json")["train"]["tuned"]
    return taken, yaml.safe_dump(content, sort_keys=True, allow_unicode=True)


@contextlib.contextmanager
def _dashboard(launch: LaunchFile) -> Iterator[JobSubmissionClient]:
    """Forward a port to the head's dashboard, and connect to its Jobs API."""
    set_environment()  # before Ray is imported, which reads the token then
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forward = subprocess.Popen(
        launch.ray_command("dashboard", "--port", str(port), "--remote-port", str(_DASHBOARD_PORT)),
        env=launch.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # SSH is its child
    )
    try:
        deadline = time.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                client = JobSubmissionClient(f"http://127.0.0.1:{port}")
                break
            except (ConnectionError, RuntimeError) as error:
                if forward.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.5)
                    continue
                raise EngineError(
                    f"the Jobs API of the head does not answer: {error}",
                    where=f"{launch.path}: port {_DASHBOARD_PORT} of the head",
                    todo="Check the cluster with `reki launch status`, and that ~/.ray/auth_token "
                    "is the token it was started with.",
                ) from error
        yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(forward.pid, signal.SIGTERM)
        forward.wait()


def _submit(client: JobSubmissionClient, name: str, entrypoint: str, *, again: bool) -> str:
    """Submit the job, unless it runs or has succeeded; returns the id of the attempt."""
    attempts = {
        job.submission_id: job.status
        for job in client.list_jobs()
        if job.submission_id and job.submission_id.rpartition(".")[0] == name
    }
    number = len(attempts)
    last = f"{name}.{number}"
    if number and not attempts[last].is_terminal():
        _say(f"submit: follows the running job {last}; interrupt to leave it running")
        return last
    if number and attempts[last] == "SUCCEEDED" and not again:
        _say(f"submit: {last} succeeded before; --again runs it again")
        return last
    job = f"{name}.{number + 1}"
    try:
        client.submit_job(entrypoint=entrypoint, submission_id=job)
    except RuntimeError as error:
        if "already exists" not in str(error):  # else another submission was faster
            raise
    _say(f"submit: {job}; interrupt to leave it running")
    return job


def _follow(client: JobSubmissionClient, job: str) -> int:
    """Print the job's log until it ends; returns its exit code."""
    shown, seen_at = 0, time.monotonic()
    while True:
        try:
            shown = asyncio.run(_print_log(client, job, shown))
            info = client.get_job_info(job)
            seen_at = time.monotonic()
        except Exception as error:
            # aiohttp's, requests' and Ray's errors alike, as when the head restarts.
            if time.monotonic() - seen_at > _LOST_SECONDS:
                raise EngineError(
                    f"the connection to the head is lost: {error}",
                    where=job,
                    todo="Repeat the command to follow the job again.",
                ) from error
            time.sleep(2)
            continue
        if info.status.is_terminal():
            break
        time.sleep(1)
    _say(f"submit: {job} {info.status.lower()}")
    if info.status == "SUCCEEDED":
        return 0
    if info.driver_exit_code is None or info.driver_exit_code <= 0:
        _say(f"submit: {info.message}")
        return EngineError.exit_code
    return int(info.driver_exit_code)


async def _print_log(client: JobSubmissionClient, job: str, shown: int) -> int:
    """Print what was not shown yet; the log comes from its beginning after a lost connection."""
    position = 0
    chunks: Any = client.tail_job_logs(job)
    async for chunk in chunks:
        new = chunk[max(0, shown - position) :]
        position += len(chunk)
        sys.stdout.write(new)
        sys.stdout.flush()
    return max(shown, position)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")

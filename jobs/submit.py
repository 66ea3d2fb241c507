"""Sends a command that writes or measures an index to a Ray cluster as a Ray job and follows it.
`zerogr submit CONFIG --address RAY_ADDRESS`, `zerogr submit --address RAY_ADDRESS -- COMMAND ...`

The job carries the configuration, this package's code and nothing else: the cluster's image needs the dependencies only.
The index and the corpus must be where the cluster can reach them (s3://, or a path that all nodes mount).
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from jobs.command import run_module
from jobs.parser import build_parser, spelt
from zerogr.config.file import load_config
from zerogr.errors import Fault, UserError
from zerogr.index.stage import STAGES

logger = logging.getLogger(__name__)

COMMANDS = sorted({"index", "ablate", "study", "update", *(stage.command for stage in STAGES.values())})
"""What may be a job: whatever writes or measures. The rest answers at once, from here."""
PLACES = ("index", "add", "dataset", "out", "runs")
"""Arguments that name a place: a job has another working directory."""
STOP_WAIT_S = 150
"""So long `ray job stop` waits before it kills: longer than `jobs.train` waits for a checkpoint. Ray's default is 3 s."""
STARTING_S = 60.0
"""So long a cluster may need until it takes jobs: its nodes' agents start after the job server."""


def job_of(options: argparse.Namespace) -> argparse.Namespace:
    """Returns the parsed command of the job.

    Raises:
        UserError: It is none that can be a job, or an option of `index` stands before another command.
    """
    arguments = options.job
    if len(arguments) == 1:
        given = [*(f"--set={text}" for text in options.overrides), *(f"--rebuild={stage}" for stage in options.rebuild)]
        arguments = ["index", *arguments, *given]
    elif options.overrides or options.rebuild:
        raise UserError("--set and --rebuild belong to the command; give them behind it, after the --")
    if arguments[0] not in COMMANDS:
        raise UserError(f"'{arguments[0]}' is nothing to submit; it may be {', '.join(COMMANDS)}")
    return build_parser().parse_args(arguments)


def packed(job: argparse.Namespace, folder: Path) -> str:
    """Returns the command line of a job whose working directory is a copy of `folder`, and puts there what it reads.

    Raises:
        UserError: The configuration is wrong, or the file of --remove is missing.
    """
    for name in PLACES:
        if value := getattr(job, name, None):
            setattr(job, name, [_absolute(each) for each in value] if isinstance(value, list) else _absolute(value))
    if "config" in job:
        config = load_config(job.config, job.set)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        job.config, job.set = "config.yaml", []
    if getattr(job, "remove", None):
        try:
            shutil.copyfile(job.remove, folder / "remove.txt")
        except OSError as error:
            raise UserError(f"'{job.remove}' cannot be read ({error.strerror}); --remove takes a text file") from None
        job.remove = "remove.txt"
    return shlex.join(["python", "-m", "jobs.cli", *spelt(job)])


def submit(
    job: argparse.Namespace, address: str, *, wait: bool = True, num_gpus: float = 0, env: list[str] | None = None
) -> str:
    """Returns the job's id, after it has succeeded if `wait`.

    Args:
        job: The parsed command.
        address: Of the job server.
        wait: Whether to show its log until it ends.
        num_gpus: Of the node that the command runs on; its engines and trainers have their own.
        env: Names of environment variables that the job gets as they are here.

    Raises:
        UserError: The cluster cannot be reached, a variable is not set, or the job failed; its last line is in the message.
        Fault: The cluster does not take the job, or it can no longer be followed.
    """
    import jobs
    import serve
    import zerogr

    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **_values(env or [])}
    with tempfile.TemporaryDirectory() as folder:
        entrypoint = packed(job, Path(folder))
        client = _client(address)
        modules = [str(Path(module.__path__[0])) for module in (zerogr, jobs, serve)]
        job_id = _taken(
            client,
            address,
            entrypoint=entrypoint,  # the job server sets RAY_ADDRESS
            runtime_env={"working_dir": folder, "py_modules": modules, "env_vars": variables},
            entrypoint_num_gpus=num_gpus or None,
        )
    logger.info("%s: %s", job_id, entrypoint)
    logger.info("follow it: ray job logs --follow --address %s %s", address, job_id)
    logger.info("stop it:   ray job stop --address %s %s", address, job_id)
    try:
        if wait:
            _follow(client, address, job_id)
    except KeyboardInterrupt:
        raise Fault(
            f"job {job_id} goes on without being followed; `ray job stop --address {address} {job_id}` stops it"
        ) from None
    return job_id


def _client(address: str) -> Any:
    """Returns the client of a job server. Raises UserError if none answers, or it does not take our token."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at '{address}' does not let us in; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token "
            "(docs/cluster.md)"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at '{address}': {' '.join(str(error).split())}; start one, or open the tunnel to it "
            "(docs/cluster.md)"
        ) from error


def _taken(client: Any, address: str, **job: Any) -> str:
    """Submits a job; returns its id. A cluster that has only just started is given a minute to take it."""
    deadline = time.monotonic() + STARTING_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise Fault(
                    f"the cluster at '{address}' has not taken the job: {' '.join(str(error).split())}; look at "
                    "`ray status` on its head, and give the same command again"
                ) from error
        time.sleep(1)


def _follow(client: Any, address: str, job_id: str) -> None:
    """Shows a job's log until it has succeeded; raises as `submit`."""
    from ray.job_submission import JobStatus

    shown = 0
    while True:
        try:
            status, logs = client.get_job_status(job_id), client.get_job_logs(job_id)
        except (OSError, RuntimeError) as error:  # also those of HTTP
            raise Fault(
                f"'{address}' no longer answers ({' '.join(str(error).split())}); job {job_id} may go on: open the tunnel "
                f"again and follow it with `ray job logs --follow --address {address} {job_id}`"
            ) from error
        sys.stderr.write(logs[shown:])
        shown = len(logs)
        if status == JobStatus.SUCCEEDED:
            return
        if status.is_terminal():
            last = [line for line in logs.splitlines() if line.strip()][-1:] or ["it wrote nothing"]
            raise UserError(f"job {job_id} on '{address}' ended as {status}: {last[0]}")
        time.sleep(2)


def _absolute(place: str) -> str:
    return place if ":" in place else os.path.abspath(os.path.expanduser(place))


def _values(names: list[str]) -> dict[str, str]:
    for name in names:
        if name not in os.environ:
            raise UserError(
                f"--env takes the name of a variable that is set, and '{name.partition('=')[0]}' is not one"
            )
    return {name: os.environ[name] for name in names}


def command(options: argparse.Namespace) -> None:
    """Submits the job and prints its id."""
    job = job_of(options)
    print(submit(job, options.address, wait=not options.no_wait, num_gpus=options.gpus, env=options.env))


if __name__ == "__main__":
    run_module("submit", command)

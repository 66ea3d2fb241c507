"""Sends `zerogr index CONFIG` to a Ray cluster as a Ray job and follows it. `zerogr submit CONFIG --address RAY_ADDRESS`

The job carries the configuration, this package's code and nothing else: the cluster's image needs the dependencies only.
The index and the corpus must be where the cluster can reach them (s3://, or a path that all nodes mount).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import yaml

from jobs.command import run_module
from zerogr.config.tree import Config
from zerogr.errors import UserError


def submit(config: Config, address: str, *, wait: bool = True, rebuild: list[str] | None = None) -> str:
    """Returns the job's id, after it has succeeded if `wait`.

    Raises:
        UserError: The cluster cannot be reached, or the job failed; its last lines are in the message.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    import jobs
    import serve
    import zerogr

    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at '{address}': {' '.join(str(error).split())}; start one with `ray up cluster.yaml`"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
        modules = [str(Path(module.__path__[0])) for module in (zerogr, jobs, serve)]
        options = "".join(f" --rebuild {stage}" for stage in rebuild or [])
        job_id = client.submit_job(
            entrypoint=f"python -m jobs.index config.yaml{options}",  # the job server sets RAY_ADDRESS
            runtime_env={"working_dir": folder, "py_modules": modules},
        )
    if not wait:
        return job_id
    shown = 0
    while True:
        status = client.get_job_status(job_id)
        logs = client.get_job_logs(job_id)
        sys.stderr.write(logs[shown:])
        shown = len(logs)
        if status == JobStatus.SUCCEEDED:
            return job_id
        if status.is_terminal():
            last = [line for line in logs.splitlines() if line.strip()][-1:] or ["it wrote nothing"]
            raise UserError(f"job {job_id} on '{address}' ended as {status}: {last[0]}")
        time.sleep(2)


def command(options: argparse.Namespace) -> None:
    """Submits the job and prints its id."""
    print(submit(options.config, options.address, wait=not options.no_wait, rebuild=options.rebuild))


if __name__ == "__main__":
    run_module("submit", command)

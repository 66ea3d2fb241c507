"""Ray for the jobs: join the cluster that `RAY_ADDRESS` names, or start a small local one and stop it at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator

from jobs.termination import fault_on_sigterm
from zerogr.machine import num_cores
from zerogr.network import check_ray_address, prepare_own_ray

logger = logging.getLogger(__name__)

LONGEST_TEMP_DIR = 25
"""Characters. Ray puts sockets deep below it, and a socket's path may have 107."""
LOCAL_OBJECT_STORE_BYTES = 300 * 2**20
"""Only shard numbers and counts pass through Ray; documents go from storage to worker and back to storage."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connects to Ray for the length of a block, in which whatever is printed goes to standard error: Ray prints there too."""
    with contextlib.redirect_stdout(sys.stderr), _connected():
        yield


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # Workers run the hook before they know the driver's import path: sent by reference, it would only be found where this
    # package is installed, and elsewhere every worker would die and be started again, for ever.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    if address := os.environ.get("RAY_ADDRESS"):
        check_ray_address(address)
        ray.init(logging_level=logging.WARNING, runtime_env={"worker_process_setup_hook": prepare_worker})
        logger.info("joined the Ray cluster at %s", address)
    else:
        prepare_own_ray()
        if len(tempfile.gettempdir()) > LONGEST_TEMP_DIR:
            os.environ.setdefault("RAY_TMPDIR", "/tmp")
        # Logical CPUs: every stage's actor, Ray Data's own tasks and the trainer's controller want one; a machine with two
        # cores would wait for ever for a third.
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=num_cores() + 4,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,  # at WARNING, Ray tells of its token
            runtime_env={"worker_process_setup_hook": prepare_worker},
        )
    try:
        with fault_on_sigterm():
            yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would stay


def prepare_worker() -> None:
    """Runs first in every worker process: logs as the driver does, and threads that sleep while they wait.

    Our own progress is shown, Ray's bookkeeping only when something is wrong. OpenMP threads that spin while they wait for
    each other on shared cores were measured thirty times slower than sleeping ones.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # at INFO it describes itself on a hundred lines
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("zerogr", "jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("ray.train", "ray.data"):
        # At WARNING, Ray Train's cleaner complains every few seconds about a cluster without a dashboard.
        logging.getLogger(name).setLevel(logging.ERROR)


def share_of_cpus(configured: int, num_workers: int) -> int:
    """Returns the threads of one worker: as configured, or an equal share of the machine."""
    return configured or max(1, num_cores() // num_workers)


LESS = "fewer engine workers, a smaller compute.engine_batch_size or compute.pass_tokens need less"


def cause_of(error: Exception, remedy: str = LESS) -> str:
    """Returns what Ray's error comes down to, in less than a line; its full text is a page. `remedy`: of a lack of memory."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("running low on memory" in line for line in lines):
        return f"a node that ran low on memory ({remedy})"
    return textwrap.shorten(lines[-1] if lines else type(error).__name__, 300, placeholder=" ...")

"""What `zerogr serve` shows while it runs: a line for each event that a person cares about, and nothing else.

Replicas tell an actor beside the driver, if there is one; a cluster that `serve deploy` has filled has none, and there the log
has the same lines. How many searchers run is what Serve's controller says.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from typing import Any

from serve.logs import logger

NAMESPACE = "serve"
_LOOK_EVERY_S = 2.0


class Events:
    """Lines on their way to the terminal; an actor."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=1000)

    def put(self, line: str) -> None:
        """Takes a line."""
        self._lines.append(line)

    def take(self) -> list[str]:
        """Returns the lines that came since the last call."""
        lines = list(self._lines)
        self._lines.clear()
        return lines


class _Teller:
    """Passes lines on in a thread: to find the actor is to ask Ray's head, which answers late or never when it has trouble.

    That is when most events happen, and an event loop that waited for it would answer nobody.
    """

    def __init__(self) -> None:
        self._lines: SimpleQueue[tuple[str, str]] = SimpleQueue()
        threading.Thread(target=self._pass_on, name="telling", daemon=True).start()

    def put(self, app_name: str, line: str) -> None:
        """Takes a line of an application."""
        self._lines.put((app_name, line))

    def _pass_on(self) -> None:
        import ray
        from ray.exceptions import RayError

        while True:
            app_name, line = self._lines.get()
            if not ray.is_initialized():  # it ended meanwhile, and to ask it would start another
                continue
            try:
                ray.get_actor(_name_of(app_name), namespace=NAMESPACE).put.remote(line)
            except ValueError:  # nobody looks on
                continue
            except RayError as error:  # the log has the line
                logger.warning("an event could not be shown: %s", type(error).__name__)


@cache
def _teller() -> _Teller:
    return _Teller()


def tell(line: str, app_name: str | None = None) -> None:
    """Logs an event of an application (None = this replica's), and shows it where `zerogr serve` runs. Waits for nobody."""
    logger.info("%s", line, extra={"event": True})
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        _teller().put(app_name or serve.get_replica_context().app_name, line)
    except RayServeException:
        return  # outside of a replica


def replica_name() -> str:
    """Returns the name of this replica; "" outside of one."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except RayServeException:
        return ""


def open_events(app_name: str) -> Any:
    """Returns the actor that replicas of an application tell; it ends with this driver."""
    import ray

    actor = ray.remote(num_cpus=0)(Events)
    return actor.options(name=_name_of(app_name), namespace=NAMESPACE, get_if_exists=True).remote()


def show(app_name: str, events: Any, is_over: threading.Event, say: Callable[[str], None]) -> None:
    """Says what happens, until it is over.

    Args:
        app_name: Of the application.
        events: As `open_events` returned it.
        is_over: Ends it.
        say: Shows a line.
    """
    import ray
    from ray import serve
    from ray.exceptions import RayError

    running, fault = None, ""
    while not is_over.wait(_LOOK_EVERY_S):
        try:
            lines = ray.get(events.take.remote())
            application = serve.status().applications.get(app_name)
        except RayError as error:  # searches may go on all the same, so this process does
            known, fault = fault, f"Ray does not say how the service is: {type(error).__name__}"
            lines, application = [fault] if fault != known else [], None
        if application is not None and "Searcher" in application.deployments:
            searchers = application.deployments["Searcher"]
            before, running = running, searchers.replica_states.get("RUNNING", 0)
            lines.append("" if before is None else change(before, running, str(searchers.status.value)))
        for line in filter(None, lines):
            say(f"{time.strftime('%H:%M:%S')} {line}")


def change(before: int, now: int, status: str) -> str:
    """Returns what a person should know of another number of searchers; "" if it is the same.

    Args:
        before, now: Searchers that run.
        status: Of the deployment, as Ray Serve has it: HEALTHY, UNHEALTHY, UPSCALING, ...
    """
    if before == now:
        return ""
    if now > before:
        return f"{now} searchers run, {before} before"
    if status in ("DOWNSCALING", "UPDATING"):
        return f"{now} searchers run, {before} before: fewer are needed"
    return f"a searcher was lost: {now} of {before} are left, and Ray Serve starts another"


def _name_of(app_name: str) -> str:
    return f"zerogr-events-{app_name}"

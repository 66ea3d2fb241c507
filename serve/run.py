"""Start the application on Ray and keep it until it is told to stop: what `zerogr serve INDEX` calls.

Without an address a Ray of its own is started on this machine and stopped at the end, and this process is the ingress
(`serve.server`); with one (an argument or RAY_ADDRESS) the application is deployed on that cluster, behind Ray Serve's proxies,
and deleted there at the end. To leave it on the cluster, use Ray Serve's own `serve deploy` with the same config file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serve.app import application, searchers
from serve.config_file import ServeConfig, load_serve_config
from serve.searcher import load_retriever
from serve.server import HttpServer, listen, log_file
from serve.settings import ServeArguments
from serve.terminal import open_events, show
from serve.versions import Loader
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.machine import num_cores
from zerogr.network import check_ray_address, prepare_own_ray
from zerogr.store import storage

logger = logging.getLogger(__name__)

ON_CPUS: dict[str, int] = {"max_ongoing_requests": 24, "max_queued_requests": 16}
MOST_QUERIES_ON_CPUS = 16
"""Instead of the default file's limits, which are made for GPUs: a core decodes 16 queries together nearly as fast as 32, and
more in hand is only a longer wait."""
MOST_REQUESTS = 256
"""That this process has in hand as the ingress, unless the config file says it."""
OF_OWN_SERVE = {
    "RAY_worker_niceness": "5",  # not 15: threads that decode (19) have something to give way to
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",  # not 100
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # not .1
}
"""The environment of an embedded Ray, beside that of every Ray of our own: on two cores its processes take .35 of one while
nobody asks anything, so .22."""
OBJECT_STORE_BYTES = 300 * 2**20
"""Of an embedded Ray: only queries and hits pass through it."""


def serve_index(
    index_uri: str,
    *,
    host: str | None = None,
    port: int | None = None,
    num_replicas: int | None = None,
    config_file: str | None = None,
    address: str | None = None,
    blocking: bool = True,
    in_process: bool | None = None,
    loader: Loader = load_retriever,
) -> Callable[[], None]:
    """Serves an index, prints one line with the URL when a model is loaded, and returns a function that stops it.

    While it blocks, it prints a line for each event that a person cares about.

    Args:
        index_uri: A finished index.
        host: Interface to listen on; None = the config file's (127.0.0.1 in the default file).
        port: None = the config file's (8000 in the default file).
        num_replicas: That many searchers, always; None = the config file's autoscaling.
        config_file: A config file of Ray Serve; None = the `config.yaml` beside this module, with one GPU per searcher
            where Ray has GPUs.
        address: Of a Ray cluster; None = RAY_ADDRESS, or else a Ray of our own on this machine.
        blocking: Whether to return only after SIGINT or SIGTERM, when everything is stopped.
        in_process: Whether this process is the ingress, instead of Ray Serve's proxies with replicas behind them; None = where
            Ray is our own.
        loader: Makes a searcher's retriever; runs in the searcher's process.

    Raises:
        UserError: The index is not finished, the config file or the token's file is wrong, or the port is taken.
        RuntimeError: The application could not be deployed; Ray Serve's message says why.
    """
    index_uri = _absolute(index_uri)
    index = Index(index_uri)
    for stage in ("trie", "retriever"):
        index.require(stage)
    config = load_serve_config(config_file)
    config.http_options.update(_given(host=host, port=port))
    arguments, _ = config.arguments(index_uri), config.defaults

    import ray

    is_ours = not ray.is_initialized() and _address(address) == "local"
    with contextlib.ExitStack() as cleanup:
        listening = None
        if is_ours if in_process is None else in_process:
            listening = cleanup.enter_context(contextlib.closing(listen(config.http_options)))
        _join_ray(address, num_replicas or 1, 0 if listening else 1, cleanup)
        arguments = _fit(config, arguments, num_replicas, is_default=config_file is None, is_ours=is_ours)
        events = open_events(config.name) if blocking else None
        server = _deploy(config, arguments, loader, listening, cleanup, is_ours=is_ours)
        print(f"Serving {index_uri} at {_url(config.host, config.port, config.route_prefix)}", flush=True)
        stop = cleanup.pop_all()
    if blocking:
        with contextlib.closing(stop):
            _show_until_signal(config.name, events, server)
    return stop.close


def _fit(
    config: ServeConfig, arguments: ServeArguments, num_replicas: int | None, *, is_default: bool, is_ours: bool
) -> ServeArguments:
    """Fits the searchers to the machines that Ray has; returns the arguments for them."""
    import ray

    has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    _size_searchers(config, num_replicas, is_default=is_default, has_gpu=has_gpu)
    if is_ours and arguments.num_threads is None:
        arguments = arguments.model_copy(update={"num_threads": _num_threads(config.options["Searcher"])})
    if is_default and not has_gpu:
        arguments = arguments.model_copy(update={"most_queries": MOST_QUERIES_ON_CPUS})
    return arguments


def _size_searchers(config: ServeConfig, num_replicas: int | None, *, is_default: bool, has_gpu: bool) -> None:
    searcher = config.options.setdefault("Searcher", {})
    if is_default and has_gpu:
        searcher["ray_actor_options"] = {**searcher.get("ray_actor_options", {}), "num_gpus": 1}
    elif is_default:
        searcher |= ON_CPUS
    if num_replicas is not None:
        searcher.pop("autoscaling_config", None)
        searcher["num_replicas"] = num_replicas


def _num_threads(searcher: dict[str, Any]) -> int:
    """Returns each searcher's share of this machine's cores when as many run as may.

    Searchers of a thread each answer more than one of as many threads: these wait for each other at every layer.
    """
    most = searcher.get("autoscaling_config", {}).get("max_replicas") or searcher.get("num_replicas")
    return max(1, num_cores() // (most if isinstance(most, int) else 1))


def _deploy(
    config: ServeConfig,
    arguments: ServeArguments,
    loader: Loader,
    listening: socket.socket | None,
    cleanup: contextlib.ExitStack,
    *,
    is_ours: bool,
) -> HttpServer | None:
    """Starts the application and returns when it answers; `cleanup` deletes it, unless it goes with a Ray of our own.

    The server is None where Ray Serve's proxies speak HTTP.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it says of itself is in its log
    serve.start(
        proxy_location="Disabled" if listening else config.proxy_location, http_options=dict(config.http_options)
    )
    if not (
        is_ours and listening
    ):  # our server has answered what was underway; Ray Serve may be gone, and is waited for long
        cleanup.callback(serve.delete, config.name)
    make = application if listening is None else searchers
    try:
        target = make(arguments, loader=loader, options=config.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"the deployments of the config file are wrong: {' '.join(str(error).split())}") from error
    handle = serve.run(target, name=config.name, route_prefix=None if listening else config.route_prefix)
    server = None if listening is None else _open(config, arguments, handle, listening, cleanup)
    # A wildcard address can be listened on, not connected to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    _wait_for_answer(_url(host, config.port, config.route_prefix))
    return server


def _open(
    config: ServeConfig,
    arguments: ServeArguments,
    handle: Any,
    listening: socket.socket,
    cleanup: contextlib.ExitStack,
) -> HttpServer:
    """Lets this process be the ingress."""
    import ray

    from serve.ingress import Front

    session = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).address_info["session_dir"]
    cleanup.enter_context(log_file(Path(session) / "logs" / "serve", config.name))
    front = Front(handle, arguments, config.name, config.defaults)
    most_requests = config.options.get("Ingress", {}).get("max_ongoing_requests", MOST_REQUESTS)
    server = HttpServer(front.api(most_requests=most_requests), listening, config.route_prefix, config.http_options)
    server.start()
    cleanup.callback(server.stop)
    return server


def command(options: argparse.Namespace) -> None:
    """Serves until it is told to stop: `zerogr serve INDEX`."""
    serve_index(
        options.index, host=options.host, port=options.port, num_replicas=options.replicas, config_file=options.config
    )


def _address(address: str | None) -> str:
    """Returns that of the cluster; `local` for a Ray of our own."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


def _join_ray(address: str | None, num_replicas: int, num_more: int, cleanup: contextlib.ExitStack) -> None:
    """Connects to Ray, starting one for so many searchers, with so many CPUs more, if need be."""
    import ray

    if ray.is_initialized():
        return
    address = _address(address)
    if address != "local":
        check_ray_address(address)
        ray.init(address=address, log_to_driver=False)
        cleanup.callback(ray.shutdown)
        return
    prepare_own_ray()
    for name, value in OF_OWN_SERVE.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        include_dashboard=False,
        # A replica that finds no room for its share of a CPU is waited for silently.
        num_cpus=max(num_cores(), num_replicas) + num_more,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.ERROR,  # at WARNING, Ray tells of its token
        log_to_driver=False,  # events come by themselves, the rest is in the log
    )
    cleanup.callback(ray.shutdown)


def _url(host: str, port: int, route_prefix: str) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{route_prefix}"


def _wait_for_answer(url: str, timeout_s: float = 30) -> None:
    """Returns when the application answers under its URL; the proxies learn of a new application a little later."""
    probe = url.rstrip("/") + "/healthz"
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # an own address is not to be had from a proxy
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with direct.open(probe, timeout=5) as response:
                if json.load(response) == {"status": "alive"}:
                    return
        except (OSError, ValueError) as error:
            logger.debug("%s does not answer yet: %s", probe, error)
        if time.monotonic() > deadline:
            raise UserError(
                f"nothing of ours answers at {url} after {timeout_s:.0f} s; if Ray Serve was already running on this "
                "cluster, it keeps its own host and port: give those"
            )
        time.sleep(0.1)


def _show_until_signal(app_name: str, events: Any, server: HttpServer | None) -> None:
    """Prints events until SIGINT or SIGTERM comes. Raises UserError if the server ends before."""
    over = threading.Event() if server is None else server.is_over
    with _handlers({signal.SIGINT, signal.SIGTERM}, lambda *_: over.set()):
        show(app_name, events, over, lambda line: print(line, flush=True))
    if server is not None:
        server.check()


@contextlib.contextmanager
def _handlers(signals: set[signal.Signals], handler: Callable[..., None]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _absolute(uri: str) -> str:
    # A replica's working directory is not ours.
    return uri if "://" in uri or not storage.is_local(uri) else os.path.abspath(uri)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

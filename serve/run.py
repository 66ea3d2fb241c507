"""Start the application on Ray and keep it until it is told to stop: what `zerogr serve INDEX` calls.

Without an address a Ray of its own is started on this machine and stopped at the end; with one (an argument or
RAY_ADDRESS) the application is deployed on that cluster and deleted there at the end. To leave it on the cluster, use
Ray Serve's own `serve deploy` with the same config file.
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
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serve.app import application, load_retriever
from serve.settings import ServeArguments
from serve.terminal import open_events, show
from serve.tokens import read_token
from serve.versions import Loader
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.network import check_ray_address, protect_own_ray
from zerogr.store import storage

logger = logging.getLogger(__name__)

ON_CPUS: dict[str, int] = {"max_ongoing_requests": 24, "max_queued_requests": 16}
MOST_QUERIES_ON_CPUS = 16
"""Instead of the default file's limits, which are made for GPUs: a core decodes 16 queries together nearly as fast as 32, and
more in hand is only a longer wait."""
OF_OWN_RAY = {
    "RAY_worker_niceness": "5",  # not 15: threads that decode (19) have something to give way to
    "RAY_enable_metrics_collection": "0",  # Ray's own, which nobody reads here; ours are at /metrics
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",  # not 100
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # not .1
}
"""The environment of an embedded Ray, unless it is set otherwise: on two cores its processes take .35 of one while nobody asks
anything, so .22."""
OBJECT_STORE_BYTES = 300 * 2**20
"""Of an embedded Ray: only queries and hits pass through it."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A config file of Ray Serve that holds this application and nothing else."""

    proxy_location: str
    http_options: dict[str, Any]
    name: str
    route_prefix: str
    args: dict[str, Any]
    """Fields of `ServeArguments`; `index` is filled in by the caller."""
    options: dict[str, dict[str, Any]]
    """Deployment name -> options of Ray Serve's `Deployment.options`."""


def serve_index(
    index_uri: str,
    *,
    host: str | None = None,
    port: int | None = None,
    num_replicas: int | None = None,
    config_file: str | None = None,
    address: str | None = None,
    blocking: bool = True,
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
    http_options = {**config.http_options, **_given(host=host, port=port)}
    arguments = _arguments(config, index_uri)

    import ray

    with contextlib.ExitStack() as cleanup:
        is_ours = _join_ray(address, http_options, num_replicas or 1, cleanup)
        has_gpu = ray.cluster_resources().get("GPU", 0) > 0
        _size_searchers(config, num_replicas, is_default=config_file is None, has_gpu=has_gpu)
        if is_ours and arguments.num_threads is None:
            arguments = arguments.model_copy(update={"num_threads": _num_threads(config.options["Searcher"])})
        if config_file is None and not has_gpu:
            arguments = arguments.model_copy(update={"most_queries": MOST_QUERIES_ON_CPUS})
        events = open_events(config.name) if blocking else None
        _deploy(config, http_options, arguments, loader, cleanup)
        url = _url(http_options["host"], http_options["port"], config.route_prefix)
        print(f"Serving {index_uri} at {url}", flush=True)
        stop = cleanup.pop_all().close
    if not blocking:
        return stop
    try:
        _show_until_signal(config.name, events)
    finally:
        stop()
    return lambda: None


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
    return max(1, len(os.sched_getaffinity(0)) // (most if isinstance(most, int) else 1))


def _deploy(
    config: ServeConfig,
    http_options: dict[str, Any],
    arguments: ServeArguments,
    loader: Loader,
    cleanup: contextlib.ExitStack,
) -> None:
    """Starts the application and returns when it answers; `cleanup` deletes it."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it says of itself is in its log
    serve.start(proxy_location=config.proxy_location, http_options=http_options)
    cleanup.callback(serve.delete, config.name)
    try:
        target = application(arguments, loader=loader, options=config.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"the deployments of the config file are wrong: {' '.join(str(error).split())}") from error
    serve.run(target, name=config.name, route_prefix=config.route_prefix)
    # A wildcard address can be listened on, not connected to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http_options["host"], http_options["host"])
    _wait_for_answer(_url(host, http_options["port"], config.route_prefix))


def command(options: argparse.Namespace) -> None:
    """Serves until it is told to stop: `zerogr serve INDEX`."""
    serve_index(
        options.index, host=options.host, port=options.port, num_replicas=options.replicas, config_file=options.config
    )


def load_serve_config(path: str | None = None) -> ServeConfig:
    """Returns a config file's content, the default file's if `path` is None.

    Raises:
        UserError: The file is missing, no config of Ray Serve, or holds something else than this application.
    """
    from ray.serve.schema import ServeDeploySchema

    name = path or "config.yaml"
    try:
        source = Path(path) if path else resources.files("serve").joinpath("config.yaml")
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the config file '{name}' cannot be read: {' '.join(str(error).split())}") from error
    try:
        ServeDeploySchema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"'{name}' is no config file of Ray Serve: {place}: {first['msg']}") from error
    applications = content["applications"]
    if len(applications) != 1 or applications[0].get("import_path") != "serve.app:build":
        raise UserError(f"'{name}' must hold one application, with import_path serve.app:build")
    app = applications[0]
    deployments = app.get("deployments", [])
    _refuse_others(name, content, ("proxy_location", "http_options", "applications"))
    _refuse_others(name, app, ("name", "route_prefix", "import_path", "args", "deployments"))
    _refuse_others(name, {deployment["name"] for deployment in deployments}, ("Ingress", "Searcher"))
    return ServeConfig(
        proxy_location=content.get("proxy_location", "EveryNode"),
        http_options={"host": "127.0.0.1", "port": 8000, **content.get("http_options", {})},
        name=app.get("name", "zerogr"),
        route_prefix=app.get("route_prefix", "/"),
        args=app.get("args", {}),
        options={item["name"]: {key: item[key] for key in item if key != "name"} for item in deployments},
    )


def _arguments(config: ServeConfig, index_uri: str) -> ServeArguments:
    """Returns what is served, checked as far as it can be before anything starts."""
    try:
        arguments = ServeArguments.model_validate({**config.args, "index": index_uri})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"args.{'.'.join(map(str, first['loc']))} of the config file: {first['msg']}") from error
    if arguments.token_file is None:
        return arguments
    file = os.path.abspath(arguments.token_file)  # a replica's working directory is not ours
    read_token(file)
    return arguments.model_copy(update={"token_file": file})


def _refuse_others(name: str, given: Any, known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise UserError(
                f"'{name}' has {key!r}, which `zerogr serve` does not take over; allowed: {', '.join(known)}"
            )


def _join_ray(
    address: str | None, http_options: dict[str, Any], num_replicas: int, cleanup: contextlib.ExitStack
) -> bool:
    """Connects to Ray, starting one if need be; returns whether it is ours alone."""
    import ray

    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        check_ray_address(address)
        ray.init(address=address, log_to_driver=False)
        cleanup.callback(ray.shutdown)
        return False
    _check_port(http_options["host"], http_options["port"])
    protect_own_ray()
    for name, value in OF_OWN_RAY.items():
        os.environ.setdefault(name, value)
    num_cpus = max(len(os.sched_getaffinity(0)), num_replicas)
    ray.init(
        address="local",
        include_dashboard=False,
        # One more than there are: the ingress needs its share beside the searchers, and Ray would wait for it silently.
        num_cpus=num_cpus + 1,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.ERROR,  # at WARNING, Ray tells of its token
        log_to_driver=False,  # events come by themselves, the rest is in the log
    )
    cleanup.callback(ray.shutdown)
    return True


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror}); choose another port") from error


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


def _show_until_signal(app_name: str, events: Any) -> None:
    """Prints events until SIGINT or SIGTERM comes."""
    told = threading.Event()
    with _handlers({signal.SIGINT, signal.SIGTERM}, lambda *_: told.set()):
        show(app_name, events, told, lambda line: print(line, flush=True))


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

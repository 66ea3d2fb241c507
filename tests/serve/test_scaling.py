"""Searchers come with the load and go with it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve.run import serve_index
from serve.settings import ServeArguments
from tests.serve import doubles
from zerogr.search.answer import Hit

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MOST = 3
AT_ONCE = 9
"""Clients: three times what fills a searcher."""


class Slow(doubles.RetrieverDouble):
    """Takes its time, so that few requests keep it busy and leave the processor to searchers that start."""

    def search(self, queries: list[str], **options: Any) -> list[list[Hit]]:
        time.sleep(0.5)
        return super().search(queries, **options)


def load_slow(_arguments: ServeArguments, folder: str) -> Slow:
    return Slow(Path(folder))


def test_from_one_to_many_and_back_nothing_is_dropped(local_ray: None, serve_port: int, tmp_path: Path) -> None:
    import ray

    for module in (doubles, __import__(__name__, fromlist=["_"])):  # a replica cannot import a test module by name
        ray.cloudpickle.register_pickle_by_value(module)
    autoscaling = {
        "min_replicas": 1, "max_replicas": MOST, "target_ongoing_requests": 1, "upscale_delay_s": 0.2,
        "downscale_delay_s": 0.5, "metrics_interval_s": 0.2, "look_back_period_s": 1,
    }  # fmt: skip
    searcher = {"name": "Searcher", "max_ongoing_requests": 3, "autoscaling_config": autoscaling}
    application = {
        "name": "scaling", "route_prefix": "/scaling", "import_path": "serve.app:build",
        "deployments": [
            {**searcher, "ray_actor_options": {"num_cpus": 0.1}},
            {"name": "Ingress", "ray_actor_options": {"num_cpus": 0.1}},
        ],
    }  # fmt: skip
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({"applications": [application]}))
    loader = partial(load_slow, folder=str(tmp_path))
    config = str(tmp_path / "serve.yaml")
    uri = doubles.finished_index(tmp_path)
    stop = serve_index(uri, port=serve_port, config_file=config, blocking=False, loader=loader)
    answered: Counter[int] = Counter()
    calm, over = threading.Event(), threading.Event()

    def search(until: threading.Event) -> None:
        with httpx.Client(timeout=120) as client:
            while not until.is_set():
                body = {"query": "wing", "k": 1}
                answered[client.post(f"http://127.0.0.1:{serve_port}/scaling/search", json=body).status_code] += 1

    with ThreadPoolExecutor(AT_ONCE) as threads:
        searching = [threads.submit(search, calm if number else over) for number in range(AT_ONCE)]
        try:
            _wait(lambda: _running() == MOST)
            calm.set()
            _wait(lambda: _running() == 1)
        finally:
            calm.set()
            over.set()
            wait(searching)
            stop()
    for each in searching:
        each.result()
    assert answered.keys() == {200}


def _running() -> int:
    from ray import serve

    return serve.status().applications["scaling"].deployments["Searcher"].replica_states.get("RUNNING", 0)


def _wait(until: Any) -> None:
    """For as long as the runner allows: how soon a process starts is the machine's affair."""
    while not until():
        time.sleep(0.1)

"""Fixtures that many rooms share. Servers are started here and stopped by their own handles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on more threads; workers that Ray starts inherit it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the clusters of the tests listen on loopback
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # not a process for each of many logical CPUs
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")  # look for new logs twice a second, not ten times
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "240")  # of a slow machine too

import pytest
import yaml

from tests import servers, tiny
from zerogr.network import OF_OWN_RAY


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Downloads and training examples go into a cache of the session's; converted models are those of the machine."""
    from zerogr.store.cache import cache_folder

    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROGR_CACHE", str(folder))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads sum in another order each time, and some tests ask for equal bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real, tiny causal LM."""
    return tiny.save_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BEIR folder with 40 documents and a question for each."""
    return tiny.write_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="session")
def local_ray(s3_server: str) -> Iterator[None]:
    """One small Ray for all tests that need one, as the jobs start theirs; logical CPUs are more than the machine has, so that
    nothing waits for one.

    Its workers inherit the environment, so the S3 server must be known before it starts.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # What Ray has to say it prints on standard output, whenever it likes; there the tests read what commands print.
        patch.setattr("ray._private.worker.print_to_stdstream", lambda *_, **__: None)
        for name, value in OF_OWN_RAY.items():
            patch.setenv(name, value)
        ray.init(
            address="local", include_dashboard=False, num_cpus=8, object_store_memory=200 * 2**20, log_to_driver=False
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def serve_port() -> int:
    """Where Ray Serve listens: in all tests on the same port, since it keeps the first that it was started with."""
    return servers.free_port()


@pytest.fixture(scope="session")
def tiny_index(tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path, local_ray: None) -> str:
    """The URI of a finished index of `collection`."""
    from jobs.cli import main

    folder = tmp_path_factory.mktemp("tiny-index")
    tree = tiny.settings(str(folder / "index"), collection, tiny_model)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["index", str(folder / "config.yaml")]) == 0
    return str(folder / "index")


@pytest.fixture(scope="session")
def hybrid_index(tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path, local_ray: None) -> str:
    """The URI of a finished index of `collection` whose retriever writes terms."""
    from jobs.cli import main

    folder = tmp_path_factory.mktemp("hybrid-index")
    hybrid = {"docids__scheme": "terms", "ranking__name": "mix"}
    tree = tiny.settings(str(folder / "index"), collection, tiny_model, **hybrid)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["index", str(folder / "config.yaml")]) == 0
    return str(folder / "index")


@pytest.fixture(scope="session")
def remote_index(
    s3_server: str, tmp_path_factory: pytest.TempPathFactory, collection: Path, tiny_model: Path, local_ray: None
) -> str:
    """The index of `tiny_index`'s configuration, made on S3 from a corpus on S3."""
    from jobs.cli import main
    from zerogr.store import storage

    folder = tmp_path_factory.mktemp("remote-index")
    storage.upload_folder(collection, "s3://zerogr/collection")
    tree = tiny.settings("s3://zerogr/indexes/fake", collection, tiny_model, corpus__source="s3://zerogr/collection")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["index", str(folder / "config.yaml")]) == 0
    return tree["index"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server on loopback with a bucket named `zerogr`; the environment points at it."""
    with servers.s3() as endpoint:
        yield endpoint

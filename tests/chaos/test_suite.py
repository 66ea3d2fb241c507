"""The first seeds of the chaos suite, the last of them with a language model for an engine: see `tests.chaos.suite`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tests.chaos.faulty_s3 import FaultyS3, faulty_s3
from tests.chaos.suite import a_cluster, calm_index, changes_of, has_language_model, made_again, run_seed

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@dataclass(frozen=True)
class Place:
    folder: Path
    calm: dict[bool, str]
    """Has a language model -> the index of a calm run."""
    proxy: FaultyS3
    cluster: Any


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, local_ray: None, s3_server: str) -> Iterator[Place]:
    """The indexes of calm runs, and a cluster whose processes and drivers know no other S3 than one that can fail."""
    folder = tmp_path_factory.mktemp("chaos")
    calm = {has_language_model(seed): calm_index(folder, seed) for seed in (0, 4)}
    with faulty_s3(s3_server) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        with a_cluster() as cluster:
            yield Place(folder, calm, proxy, cluster)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("seed", range(5))
def test_the_index_is_that_of_a_calm_run(seed: int, place: Place) -> None:
    calm = place.calm[has_language_model(seed)]
    run = run_seed(seed, place.cluster, place.proxy, calm, place.folder, **changes_of(seed))
    assert run.happened


@pytest.mark.parametrize(
    ("requests", "again"),
    [
        ([("PUT", "a.parquet", None), ("PUT", "b.parquet", "slow")], []),
        ([("PUT", "a.parquet", "503"), ("PUT", "a.parquet", None), ("GET", "a.parquet", None)], []),
        ([("PUT", "a.parquet", "lost"), ("PUT", "a.parquet", None)], []),  # its publisher was not told, and asks again
        ([("PUT", "a.parquet", None), ("PUT", "a.parquet", None)], ["a.parquet"]),
        ([("PUT", "index.json", None), ("PUT", "index.json", None)], []),
    ],
)
def test_a_shard_that_is_made_again_is_seen(requests: list[tuple[str, str, str | None]], again: list[str]) -> None:
    """Without this the suite could look at nothing."""
    assert made_again(requests) == again

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr.docids.embeddings import FOLDER, read_vectors, sampled_vectors
from zerogr.docids.scheme import FITTED, Context, Proposal
from zerogr.docids.schemes.kmeans import Kmeans, KmeansSettings
from zerogr.index.index import Index
from zerogr.store import storage

SETTINGS = KmeansSettings(branching=3, leaf_size=4)


def points(seed: int, each: int = 12) -> np.ndarray:
    """Nine clusters in three groups, far from each other."""
    draw = np.random.default_rng(seed)
    centres = np.array([[10 * x, 10 * y, 0, 0] for x in range(3) for y in (0, 1, 2)], np.float32)
    centres[:, 0] *= 10
    return (centres.repeat(each, 0) + draw.normal(0, 0.1, (9 * each, 4))).astype(np.float32)


def write_vectors(index: Index, shards: Sequence[np.ndarray]) -> None:
    for shard, vectors in enumerate(shards):
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
        storage.write_parquet(index.shard(FOLDER, shard), pa.table({"vector": column}))


def scheme_of(folder: Path, vectors: np.ndarray, **settings: Any) -> Kmeans:
    """Returns the fitted scheme, its vectors in two shards and a third one without documents."""
    chosen = SETTINGS.model_copy(update=settings)
    context = Context(Index(str(folder)), seed=0)
    write_vectors(context.index, [*np.array_split(vectors, 2), vectors[:0]])
    with storage.staging_folder(context.index.path(FITTED)) as staged:
        Kmeans.fit(chosen, context, staged)
    return Kmeans(chosen, context)


def paths_of(scheme: Kmeans, vectors: np.ndarray) -> list[list[int]]:
    proposals = scheme.identify([{"vector": vector} for vector in vectors])
    assert all(isinstance(proposal, Proposal) for proposal in proposals)
    return [[int(code) for code in proposal.candidates[0].split(" ")] for proposal in proposals]  # type: ignore[union-attr]


def test_near_documents_begin_alike(tmp_path: Path) -> None:
    vectors = points(0)
    paths = paths_of(scheme_of(tmp_path, vectors), vectors)
    groups = [{tuple(path[:1]) for path in paths[36 * i : 36 * (i + 1)]} for i in range(3)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 3
    clusters = [{tuple(path[:2]) for path in paths[12 * i : 12 * (i + 1)]} for i in range(9)]
    assert all(len(cluster) == 1 for cluster in clusters) and len(set.union(*clusters)) == 9
    assert all(len(path) >= 3 for path in paths)  # twelve are more than a leaf holds
    assert max(max(path) for path in paths) < 3


def test_a_new_document_goes_where_its_like_are(tmp_path: Path) -> None:
    scheme = scheme_of(tmp_path, points(0))
    old, new = paths_of(scheme, points(0)), paths_of(scheme, points(1))
    assert [path[:2] for path in new] == [path[:2] for path in old]


def test_the_tree_is_the_same_from_the_same_vectors(tmp_path: Path) -> None:
    once, again = (scheme_of(tmp_path / name, points(0)) for name in "ab")
    assert paths_of(once, points(0)) == paths_of(again, points(0))


def test_few_or_equal_documents_are_one_leaf(tmp_path: Path) -> None:
    same = np.ones((50, 4), np.float32)
    for name, vectors in (("few", points(0)[:4]), ("same", same)):
        scheme = scheme_of(tmp_path / name, vectors)
        assert paths_of(scheme, vectors) == [[0]] * len(vectors)
    assert scheme.numbered("0", 17) == "0 17" and list(scheme.tell_apart("0", [], [])) == []


def test_a_sample_makes_the_tree(tmp_path: Path) -> None:
    scheme = scheme_of(tmp_path, points(0), sample_size=30)
    assert len({tuple(path[:1]) for path in paths_of(scheme, points(0))}) == 3


def test_a_sample_is_drawn_from_all_shards_and_holds_no_more(tmp_path: Path) -> None:
    index, vectors = Index(str(tmp_path)), np.arange(100, dtype=np.float32).reshape(50, 2)
    write_vectors(index, [vectors[:20], vectors[20:20], vectors[20:]])
    assert (sampled_vectors(index, 50, 0) == vectors).all() and (sampled_vectors(index, 99, 0) == vectors).all()
    chosen = np.sort(np.random.default_rng(7).choice(50, 12, replace=False))
    assert (sampled_vectors(index, 12, 7) == vectors[chosen]).all()
    assert chosen[0] < 20 < chosen[-1]


def test_a_shard_without_documents(tmp_path: Path) -> None:
    """The last one is empty where the last rows of a corpus were all rejected."""
    scheme = scheme_of(tmp_path, points(0))
    assert scheme.identify([]) == [] and read_vectors(Index(str(tmp_path)), 2).shape == (0, 4)


def test_its_stage_has_a_folder_of_its_own() -> None:
    assert FOLDER == "embeddings" and KmeansSettings.needs_embeddings and KmeansSettings.codec == "codes"

"""K-means: a document's docid is its path down a tree of clusters, "17 3 201"; near documents begin alike.

Hierarchical k-means over document vectors, as DSI has it (Tay et al. 2022, "Transformer Memory as a Differentiable Search
Index", semantically structured identifiers) and NCI (Wang et al. 2022, "A Neural Corpus Indexer"): a cluster of more than
`leaf_size` documents is split again. The tree is made once, from a sample; every document then goes down by the nearest
centroids, so that a new one needs no new tree. Documents that end in the same leaf are numbered there.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from zerogr.config.base import EncoderConfig, SchemeSettings
from zerogr.docids.embeddings import sampled_vectors
from zerogr.docids.scheme import Context, DocidScheme, Proposal
from zerogr.errors import UserError
from zerogr.llm.generation import Rejection
from zerogr.store.arrays import load_arrays, save_arrays

_ARRAYS = ("centroids", "first_child")
_MANY = 50_000
"""From so many documents on a cluster is split by mini-batches."""


class KmeansSettings(SchemeSettings, EncoderConfig):
    """Of the scheme kmeans."""

    needs_embeddings = True
    has_fit = True
    codec = "codes"

    scheme: str = Field("kmeans", description="The path down a tree of clusters of the documents' vectors.")
    branching: int = Field(30, ge=2, le=4096, description="Clusters that a cluster is split into.")
    leaf_size: int = Field(30, ge=1, le=4096, description="Most documents of a cluster that is not split.")
    sample_size: int = Field(500_000, ge=1, description="Most documents that the tree is made from, drawn evenly.")


class Kmeans(DocidScheme):
    """See the module."""

    Settings = KmeansSettings

    def __init__(self, settings: KmeansSettings, context: Context) -> None:
        arrays, _ = load_arrays(context.fitted, _ARRAYS, "tree of clusters", stage="scheme")
        self._centroids = arrays["centroids"]  # float32 [nodes, dimensions]; the root, node 0, has zeros
        self._first_child = arrays["first_child"]  # int64 [nodes + 1]; children are neighbours

    @classmethod
    def fit(cls, settings: KmeansSettings, context: Context, folder: Path) -> None:
        """Makes the tree. Raises UserError if scikit-learn is missing."""
        vectors = sampled_vectors(context.index, settings.sample_size, context.seed)
        centroids, num_children = [np.zeros((1, vectors.shape[1]), np.float32)], []
        waiting = [np.arange(len(vectors))]
        for rows in waiting:  # breadth first, so that children are neighbours
            found = _split(vectors[rows], settings, context.seed) if len(rows) > settings.leaf_size else None
            num_children.append(0 if found is None else len(found[0]))
            if found is not None:
                centroids.append(found[0])
                waiting += [rows[found[1] == cluster] for cluster in range(len(found[0]))]
        first_child = np.cumsum([1, *num_children], dtype=np.int64)
        save_arrays(folder, {"centroids": np.concatenate(centroids), "first_child": first_child}, {})

    def identify(self, documents: Sequence[dict[str, Any]]) -> list[Proposal | Rejection]:
        """Returns the path of each document's vector."""
        if not documents:
            return []
        vectors = np.stack([document["vector"] for document in documents])
        node = np.zeros(len(vectors), dtype=np.int64)
        paths: list[list[str]] = [[] for _ in documents]
        going = np.arange(len(vectors))
        while len(going := going[self._first_child[node[going]] < self._first_child[node[going] + 1]]):
            for parent in np.unique(node[going]).tolist():
                rows = going[node[going] == parent]
                begin, end = self._first_child[parent : parent + 2]
                nearest = _nearest(vectors[rows], self._centroids[begin:end])
                node[rows] = begin + nearest
                for row, cluster in zip(rows.tolist(), nearest.tolist(), strict=True):
                    paths[row].append(str(cluster))
        return [Proposal(candidates=[" ".join(path) or "0"], sources=["scheme"]) for path in paths]

    def tell_apart(self, docid: str, own: Sequence[str], rival: Collection[str]) -> Iterator[str]:
        """Yields nothing: documents of a leaf are numbered."""
        return iter(())

    def numbered(self, docid: str, number: int) -> str:
        """Returns the path with the number behind it."""
        return f"{docid} {number}"


def _split(vectors: np.ndarray, settings: KmeansSettings, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns centroids, float32 [clusters, dimensions], and the cluster of every vector; None if all are one point."""
    try:
        from sklearn.cluster import KMeans, MiniBatchKMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise UserError(
            f"docids.scheme kmeans needs scikit-learn ({error}); run `pip install 'zerogr[dense]'`"
        ) from None
    if (vectors == vectors[0]).all():
        return None
    kind = MiniBatchKMeans if len(vectors) > _MANY else KMeans
    clusters = kind(min(settings.branching, len(vectors)), n_init=3, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # fewer different points than clusters; those unused go below
        centroids = clusters.fit(vectors).cluster_centers_
    cluster = _nearest(vectors, centroids.astype(np.float32))
    used, cluster = np.unique(cluster, return_inverse=True)
    return (centroids[used].astype(np.float32), cluster) if len(used) > 1 else None


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the nearest centroid of every vector, int64 [len(vectors)]."""
    distances = (centroids**2).sum(1) - 2 * vectors @ centroids.T
    nearest: np.ndarray = distances.argmin(1)
    return nearest

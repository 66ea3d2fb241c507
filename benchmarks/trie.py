"""How fast is the docid trie built, opened and read, and what does a docid take? `python -m benchmarks.trie [--quick]`

Synthetic keyword docids: 8 to 11 tokens, Zipf-distributed within one of many topics, so that docids of a topic share
prefixes as real ones do. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import numpy as np

from zerogr.trie import DocidTrie


def synthetic_docids(num_docids: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens int32 [T], offsets int64 [N + 1]) of docids in 1,000 topics of 2,000 words over 40,000 tokens."""
    random = np.random.default_rng(seed)
    lengths = random.integers(8, 12, size=num_docids)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    topic = np.repeat(random.integers(1000, size=num_docids), lengths)
    rank = np.minimum(random.zipf(1.3, size=int(offsets[-1])), 2000)
    return ((topic * 37 + rank) % 40_000).astype(np.int32), offsets.astype(np.int64)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 docids instead of 10 million")
    parser.add_argument("--docids", type=int, help="another number of docids")
    arguments = parser.parse_args()
    num_docids = arguments.docids or (100_000 if arguments.quick else 10_000_000)
    docids = synthetic_docids(num_docids)

    start = time.perf_counter()
    trie = DocidTrie.build(docids)
    build_s = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        trie.save(folder)
        start = time.perf_counter()
        opened = DocidTrie.load(folder)
        opened.children(opened.root)
        open_s = time.perf_counter() - start
        nodes = np.random.default_rng(1).integers(opened.num_nodes, size=200_000)
        start = time.perf_counter()
        opened.children_batch(nodes)
        nodes_per_s = len(nodes) / (time.perf_counter() - start)

    figures = {
        "num_docids": num_docids,
        "build_s": round(build_s, 3),
        "bytes_per_docid": round(trie.nbytes / num_docids, 2),
        "open_s": round(open_s, 5),
        "children_per_s": round(nodes_per_s),
    }
    for name, value in figures.items():
        print(f"{name:<16} {value:>14,}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

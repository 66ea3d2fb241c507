"""How fast is the docid trie built, opened, read and filtered, and what does a docid take? `python -m benchmarks.trie`

Synthetic keyword docids: 8 to 11 tokens, Zipf-distributed within one of many overlapping topics, so that docids of a
topic share prefixes as real ones do: of 10 million, 35 / 84 / 98 % are unique after 2 / 3 / 4 tokens. They are written
to files a piece at a time (`TMPDIR` says where; about 85 bytes per docid with the trie) and mapped from there, so that
100 million can be built from the page cache. Every part runs in a fresh process. The last line printed is one JSON
object.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.report import report
from zerogr.machine import peak_resident_bytes
from zerogr.trie import DocidTrie
from zerogr.trie.filtered import FilteredTrie

NUM_TOPICS, TOPIC_WORDS, TOPIC_DISTANCE, ZIPF_EXPONENT = 400, 1000, 37, 1.05
PIECE = 100_000  # docids generated at a time
SAMPLE = 100_000  # docids in the trie of dictionaries
BATCH = 200_000  # nodes per call of `children_batch`
REPEATS = 5

NOTES = """
- `build_s`: unsorted docids to a trie in memory, on one core, the input in the page cache; nothing is written.
- `peak_bytes_beyond_input`: how far the build raises the peak resident memory of a process that has already touched
  every page of its memory-mapped input. The finished trie is part of it, the input is not.
- `open_s`: `load` and the children of the root, in a process that has never opened the trie. The imports are not counted,
  and the files are in the page cache, as on a machine that has just copied the index: nothing was dropped.
- `children_per_s`: nodes per second through `children_batch`, batches of 200,000 random prefixes (nodes inside tails
  are the most), median of 5.
- `node_us`, `filtered_node_us`: what a search reads of a node that it visits (`docids_below`, `children`, `ends`), one
  node at a time, in the trie and in its view without 1,000 documents; the same nodes of random walks, without the root.
- `dict_trie_bytes_per_docid`: nested dictionaries from token to node with the rows at the ends, the first 100,000
  docids, by tracemalloc.
- `filter_first_s`: paid once per process, by the first filter: the place of every row's docid. `filter_deny_1000_s` and
  `filter_allow_10000_s`, of random rows, come on top for each filter; medians of 5.
"""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 docids instead of 10 million")
    parser.add_argument("--docids", type=int, help="another number of docids")
    parser.add_argument("--out", type=Path, help="also write the figures to this Markdown file")
    arguments = parser.parse_args()
    num_docids = arguments.docids or (100_000 if arguments.quick else 10_000_000)

    figures: dict[str, float] = {"num_docids": num_docids}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in (generate, build, read, build_dictionaries):
            print(f"{part.__name__.replace('_', ' ')} …", file=sys.stderr, flush=True)
            figures |= in_fresh_process(part, folder, num_docids)
    rounded = {name: value if isinstance(value, int) else float(f"{value:.4g}") for name, value in figures.items()}
    report("The docid trie", rounded, arguments.out, NOTES)


def in_fresh_process(part: Callable[[Path, int], dict[str, float]], folder: Path, num_docids: int) -> dict[str, float]:
    """What `part` returns: nothing that another part has loaded or left behind is in its memory figures."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(part, folder, num_docids).result()


def generate(folder: Path, num_docids: int) -> dict[str, float]:
    """Writes tokens.bin (int32 [T]) and offsets.bin (int64 [N + 1]); piece i depends on i alone."""
    share = np.cumsum(1 / np.arange(1, TOPIC_WORDS + 1) ** ZIPF_EXPONENT)
    share /= share[-1]
    num_tokens = 0
    with (folder / "tokens.bin").open("wb") as tokens_file, (folder / "offsets.bin").open("wb") as offsets_file:
        offsets_file.write(np.int64(0).tobytes())
        for start in range(0, num_docids, PIECE):
            random = np.random.default_rng([start // PIECE, 0])
            lengths = random.integers(8, 12, size=PIECE)[: num_docids - start]
            topic = np.repeat(random.integers(NUM_TOPICS, size=PIECE)[: len(lengths)], lengths)
            rank = np.searchsorted(share, random.random(len(topic)))
            (topic * TOPIC_DISTANCE + rank).astype(np.int32).tofile(tokens_file)
            (num_tokens + np.cumsum(lengths)).tofile(offsets_file)
            num_tokens += len(topic)
    return {}


def generated(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32 [T], offsets int64 [N + 1]), mapped from what `generate` wrote."""
    tokens = np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r")
    offsets = np.memmap(folder / "offsets.bin", dtype=np.int64, mode="r")
    return np.asarray(tokens), np.asarray(offsets)


def build(folder: Path, num_docids: int) -> dict[str, float]:
    """Builds and saves the trie."""
    tokens, offsets = generated(folder)
    tokens.max(), offsets.max()  # every page of the input is resident now
    before = peak_resident_bytes()
    start = time.perf_counter()
    trie = DocidTrie.build((tokens, offsets))
    build_s = time.perf_counter() - start
    peak = peak_resident_bytes() - before
    trie.save(folder)
    unique = unique_shares(trie, 4)
    return {
        **{f"unique_after_{depth}_tokens": unique[depth] for depth in (2, 3, 4)},
        "build_s": build_s,
        "bytes_per_docid": trie.nbytes / num_docids,
        "peak_bytes_beyond_input": peak,
    }


def unique_shares(trie: DocidTrie, max_depth: int) -> list[float]:
    """By depth 0 … `max_depth`: the share of the distinct docids that no other begins like, after so many tokens."""
    shares = []
    num_unique = 0
    begin, end = 0, 1  # the stored nodes of one depth; those without stored children have one docid
    for _ in range(max_depth + 1):
        num_unique += int((trie.first_child[begin:end] == trie.first_child[begin + 1 : end + 1]).sum())
        shares.append(num_unique / trie.num_docids)
        begin, end = int(trie.first_child[begin]), int(trie.first_child[end])
    return shares


def read(folder: Path, num_docids: int) -> dict[str, float]:
    """Opens the saved trie, reads random nodes and makes filters."""
    start = time.perf_counter()
    trie = DocidTrie.load(folder)
    trie.children(trie.root)
    open_s = time.perf_counter() - start

    random = np.random.default_rng(1)
    num_prefixes = trie.num_nodes + len(trie.tail_tokens)
    batch_s = median_s(trie.children_batch, [random.integers(num_prefixes, size=BATCH) for _ in range(REPEATS)])
    start = time.perf_counter()
    trie.docids_of_rows([0])
    filter_first_s = time.perf_counter() - start
    denied = [random.integers(num_docids, size=1000) for _ in range(REPEATS)]
    allowed = [random.integers(num_docids, size=10_000) for _ in range(REPEATS)]
    view = trie.filter(deny=denied[0])
    nodes = visited_nodes(view, 5000, random)
    return {
        "open_s": open_s,
        "children_per_s": round(BATCH / batch_s),
        "node_us": median_s(lambda nodes: read_nodes(trie, nodes), [nodes] * REPEATS) / len(nodes) * 1e6,
        "filter_first_s": filter_first_s,
        "filter_deny_1000_s": median_s(lambda rows: trie.filter(deny=rows), denied),
        "filter_allow_10000_s": median_s(lambda rows: trie.filter(allow=rows), allowed),
        "filtered_node_us": median_s(lambda nodes: read_nodes(view, nodes), [nodes] * REPEATS) / len(nodes) * 1e6,
    }


def median_s(call: Callable[..., object], inputs: list) -> float:
    """The median time of `call` with each of the inputs, in seconds."""
    times = []
    for one in inputs:
        start = time.perf_counter()
        call(one)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def visited_nodes(trie: DocidTrie | FilteredTrie, num_nodes: int, random: np.random.Generator) -> list[int]:
    """The nodes below the root of random walks, each down to the first node with one docid below it."""
    nodes: list[int] = []
    while len(nodes) < num_nodes:
        node = trie.root
        while trie.docids_below(node)[1] > 1:
            children = trie.children(node)[1]
            node = int(children[random.integers(len(children))])
            nodes.append(node)
    return nodes


def read_nodes(trie: DocidTrie | FilteredTrie, nodes: list[int]) -> None:
    """Reads of each node what a search does."""
    for node in nodes:
        trie.docids_below(node)
        trie.children(node)
        trie.ends(node)


def build_dictionaries(folder: Path, num_docids: int) -> dict[str, float]:
    """Measures the trie that a few lines of Python make of the first docids."""
    tokens, offsets = generated(folder)
    offsets = offsets[: min(SAMPLE, num_docids) + 1]
    tracemalloc.start()
    root: dict = {}
    for row in range(len(offsets) - 1):
        node = root
        for token in tokens[offsets[row] : offsets[row + 1]].tolist():
            node = node.setdefault(token, {})
        node.setdefault(-1, []).append(row)
    num_bytes, _ = tracemalloc.get_traced_memory()
    return {"dict_trie_bytes_per_docid": num_bytes / (len(offsets) - 1)}


if __name__ == "__main__":
    main()

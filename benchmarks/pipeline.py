"""How many documents a second become an index, and in how much memory? `python -m benchmarks.pipeline [--quick]`

Four parts, on synthetic documents of real words (Python's reference text; drawn by Zipf's law within a topic):

    resolution   the proposals of 10 million documents, of which one in nine collides and one in a hundred is a duplicate, are
                 resolved and written by one and by two threads; the published files are then searched for shared docids
    pipeline     a corpus in JSON Lines goes through the production jobs, with the fake engine, on a local Ray with two workers:
                 corpus, docids with their resolution, queries, trie; a tenth of the documents first, then all
    reading      the corpus job alone, by one process as one stream and by two in parts; the published files are compared
    shards       one document in each of 10,000 shards goes through the docid job; then ten shards are taken away and the same
                 command finds and makes them

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.report import report
from benchmarks.trie import peak_resident_bytes
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.corpus.document import Document
from zerogr.corpus.pystdlib import read_pystdlib
from zerogr.corpus.stage import FREQUENCY
from zerogr.docids.resolve import key_of
from zerogr.docids.stage import FOLDER, IDENTIFIERS, PROPOSAL_SCHEMA, assign_docids
from zerogr.docids.words import NUM_OWN
from zerogr.index.index import Index, shards_in
from zerogr.llm.generation import COUNTS_KEY
from zerogr.store import storage
from zerogr.text.words import FUNCTION_WORDS, words

DOCUMENTS_PER_TOPIC, TOPIC_WORDS, TOPIC_DISTANCE, ZIPF_EXPONENT = 25_000, 1000, 37, 1.4
NUM_CANDIDATES, DOCID_WORDS, TERM_DRAWS = 2, 8, 64
DUPLICATES = 0.01
TITLE_WORDS, TEXT_WORDS = 6, 60
PROPOSAL_SHARD, CORPUS_SHARD = 10_000, 2_000
PARTS = ("resolution", "pipeline", "reading", "shards")
STAGES = ("corpus", "docids", "queries", "trie")

NOTES = """
- Every run is a process of its own. Peaks are `ru_maxrss`, the interpreter and its libraries included.
- `resolution_s`: reading the proposals of all documents, resolving, and writing the docids, with one thread, most of the files
  in the page cache; `resolution_2_workers_s`: the same with two. `same_docids`: both gave every document the same docid.
- `collision_rate`: documents whose first candidate was taken, of all; `told_apart_rate`: those without any free candidate.
  `collisions_left`: docids that documents of different content share, counted from the published files.
- `documents_per_s`: documents over the seconds of all four stages. The engine makes up its answers at once, two docids and four
  queries per document, so this is the time of everything but the language model.
- `reading_N_s`: the corpus job by N processes, start of Ray included. A source below
  `zerogr.corpus.splits.SMALL_BYTES` would be left to one.
- `shard_overhead_s`: the first run's seconds over its shards, whose single documents cost next to nothing. `rerun_s`: the
  second run, start of Ray and resolution of all docids included; `rerun_finding_s`: listing what is pending.
- `peak_driver_bytes`: the process that runs the jobs; `<stage>_peak_driver_bytes`: up to the end of that stage; `_of_a_tenth`:
  with a tenth of the documents. Ray and its workers are other processes.
"""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="50,000 proposals and 5,000 documents")
    parser.add_argument("--documents", type=int, help="documents through the pipeline (default: 1 million)")
    parser.add_argument("--resolve", type=int, help="proposals to resolve (default: 10 million)")
    parser.add_argument("--shards", type=int, help="shards of one document (default: 10,000)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the measurement; all")
    parser.add_argument("--out", type=Path, help="also write the figures to this Markdown file")
    arguments = parser.parse_args()
    num_documents = arguments.documents or (5_000 if arguments.quick else 1_000_000)
    num_proposals = arguments.resolve or (50_000 if arguments.quick else 10_000_000)
    num_shards = arguments.shards or (100 if arguments.quick else 10_000)
    measures = {
        "resolution": partial(resolution, num_proposals),
        "pipeline": partial(pipeline, num_documents),
        "reading": partial(reading, num_documents),
        "shards": partial(shards, num_shards),
    }
    figures: dict[str, Any] = {}
    for part in arguments.parts:
        figures |= measures[part]()
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    report("The pipeline without its language model", rounded, arguments.out, NOTES)


def resolution(num_rows: int) -> dict[str, Any]:
    """Returns the figures of collision resolution."""
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing the proposals of {num_rows:,} documents")
        in_processes(partial(write_proposals, folder, num_rows), range(-(-num_rows // PROPOSAL_SHARD)))
        runs = []
        for num_workers in (1, 2):
            say(f"resolving them, workers: {num_workers}")
            run = in_fresh_process(resolve_all, folder, num_workers)
            runs.append(run | in_fresh_process(published, folder))
    one, two = runs
    counts = one["counts"]
    told_apart = counts["resolved_by_terms"] + counts["resolved_by_ordinal"]
    return {
        "num_proposals": num_rows,
        "resolution_s": one["seconds"],
        "resolution_2_workers_s": two["seconds"],
        "resolution_peak_bytes": one["peak_bytes"],
        "resolution_2_workers_peak_bytes": two["peak_bytes"],
        "collision_rate": counts["collisions"] / num_rows,
        "told_apart_rate": told_apart / num_rows,
        "resolved_by_ordinal": counts["resolved_by_ordinal"],
        "duplicates": counts["duplicates"],
        "collisions_left": max(one["collisions_left"], two["collisions_left"]),
        "duplicates_apart": max(one["duplicates_apart"], two["duplicates_apart"]),
        "same_docids": one["digest"] == two["digest"] and counts == two["counts"],
    }


def pipeline(num_documents: int) -> dict[str, Any]:
    """Returns the figures of the jobs, for a tenth of the documents and for all."""
    runs = []
    for size in (max(1, num_documents // 10), num_documents):
        with tempfile.TemporaryDirectory() as folder:
            say(f"writing a corpus of {size:,} documents")
            (Path(folder) / "corpus").mkdir()
            in_processes(partial(write_documents, folder, size), range(-(-size // PROPOSAL_SHARD)))
            say("running the jobs")
            runs.append(in_fresh_process(run_jobs, folder))
    tenth, whole = runs
    return {
        "num_documents": num_documents,
        "documents_per_s": num_documents / sum(whole[f"{stage}_s"] for stage in STAGES),
        **{f"{stage}_documents_per_s": num_documents / whole[f"{stage}_s"] for stage in STAGES},
        "peak_driver_bytes": whole["trie_peak_bytes"],
        "peak_driver_bytes_of_a_tenth": tenth["trie_peak_bytes"],
        **{f"{stage}_peak_driver_bytes": whole[f"{stage}_peak_bytes"] for stage in STAGES},
        **{f"{stage}_peak_driver_bytes_of_a_tenth": tenth[f"{stage}_peak_bytes"] for stage in STAGES},
    }


def reading(num_documents: int) -> dict[str, Any]:
    """Returns the figures of the corpus job, by one process and by two."""
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing a corpus of {num_documents:,} documents")
        (Path(folder) / "corpus").mkdir()
        in_processes(partial(write_documents, folder, num_documents), range(-(-num_documents // PROPOSAL_SHARD)))
        figures: dict[str, Any] = {"num_documents": num_documents}
        for num_readers in (1, 2):
            say(f"reading it, processes: {num_readers}")
            figures |= in_fresh_process(read_corpus, folder, num_readers)
    figures["reading_speedup"] = figures["reading_1_s"] / figures["reading_2_s"]
    figures["same_corpus"] = figures.pop("reading_1_digest") == figures.pop("reading_2_digest")
    return figures


def read_corpus(folder: str, num_readers: int) -> dict[str, Any]:
    """Runs the corpus job on the corpus in `folder`: seconds, the driver's peak memory, and a digest of what it published."""
    from jobs import corpus
    from zerogr.corpus import splits

    splits.SMALL_BYTES = 0  # to measure what is left alone otherwise
    config = config_of(folder, shard_size=CORPUS_SHARD, num_reading_workers=num_readers)
    config = config.model_copy(update={"index": f"{config.index}-{num_readers}"})
    start = time.perf_counter()
    corpus.run(config)
    name, index, digest = f"reading_{num_readers}", Index(config.index), hashlib.sha256()
    figures = {f"{name}_s": time.perf_counter() - start, f"{name}_peak_driver_bytes": peak_resident_bytes()}
    for shard in shards_in(index.path("corpus")):
        digest.update(storage.read_bytes(index.shard("corpus", shard)))
    digest.update(storage.read_bytes(index.path(FREQUENCY)))
    return {
        **figures,
        f"{name}_documents_per_s": index.require("corpus").counts["rows"] / figures[f"{name}_s"],
        f"{name}_digest": digest.hexdigest(),
    }


def shards(num_shards: int) -> dict[str, Any]:
    """Returns the figures of many small shards."""
    with tempfile.TemporaryDirectory() as folder:
        say(f"making and finding {num_shards:,} shards")
        (Path(folder) / "corpus").mkdir()
        for piece in range(-(-num_shards // PROPOSAL_SHARD)):
            write_documents(folder, num_shards, piece)
        return in_fresh_process(run_shards, folder, num_shards)


def run_shards(folder: str, num_shards: int) -> dict[str, Any]:
    """Runs the docid job on shards of one document, and again with ten of them gone."""
    from jobs import corpus, docids

    config = config_of(folder, shard_size=1)
    corpus.run(config)
    start = time.perf_counter()
    docids.run(config)
    first_s = time.perf_counter() - start
    index = Index(config.index)
    manifest = index.manifest()
    inputs = manifest["stages"].pop("docids")["inputs"]
    storage.write_json(index.path("index.json"), manifest)
    index.begin("docids", inputs)
    for shard in range(0, num_shards, -(-num_shards // 10)):
        storage.delete(index.shard(FOLDER, shard))
    start = time.perf_counter()
    index.pending_shards(FOLDER)
    finding_s = time.perf_counter() - start
    docids.run(config)
    return {
        "num_shards": num_shards,
        "shard_overhead_s": first_s / num_shards,
        "rerun_s": time.perf_counter() - start,
        "rerun_finding_s": finding_s,
    }


def say(text: str) -> None:
    """Tells a person what goes on."""
    print(f"{text} …", file=sys.stderr, flush=True)


def in_fresh_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Returns what `function` returns in a new process: nothing that another part left behind is in its memory figures."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def in_processes(function: Callable[[int], None], pieces: range) -> None:
    """Calls `function` with every piece's number, in two processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        for _ in processes.map(function, pieces):
            pass


@cache
def vocabulary() -> pa.Array:
    """The topical words of Python's reference text, the frequent ones first."""
    documents = (row for row in read_pystdlib() if isinstance(row, Document))
    counts = Counter(word for document in documents for word in words(document.text))
    return pa.array(
        [word for word, _ in counts.most_common() if word.isascii() and word.isalpha() and word not in FUNCTION_WORDS]
    )


def drawn_words(random: np.random.Generator, topics: np.ndarray, num_words: int) -> np.ndarray:
    """Words of documents by rank in the vocabulary (int64 [n, num_words]), drawn from their topics (int64 [n])."""
    share = np.cumsum(1 / np.arange(1, TOPIC_WORDS + 1) ** ZIPF_EXPONENT)
    ranks = np.searchsorted(share / share[-1], random.random((len(topics), num_words)))
    return np.sort(ranks, axis=1) + topics[:, None] * TOPIC_DISTANCE


def texts_of(drawn: np.ndarray, max_words: int) -> pa.ListArray:
    """The words, each once, at most `max_words` of them; from [n, words] sorted by importance."""
    is_kept = np.ones(drawn.shape, dtype=bool)
    is_kept[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    is_kept &= np.cumsum(is_kept, axis=1) <= max_words
    offsets = np.append(0, np.cumsum(is_kept.sum(axis=1))).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, vocabulary().take(drawn[is_kept] % len(vocabulary())))


def rows_of(num_rows: int, piece: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """(the piece's random numbers, its rows, their topics): a function of the piece alone."""
    random = np.random.default_rng([num_rows, piece])
    rows = np.arange(piece * PROPOSAL_SHARD, min((piece + 1) * PROPOSAL_SHARD, num_rows))
    return random, rows, random.integers(-(-num_rows // DOCUMENTS_PER_TOPIC), size=len(rows))


def write_proposals(folder: str, num_rows: int, piece: int) -> None:
    """Writes one shard of proposals."""
    random, rows, topics = rows_of(num_rows, piece)
    drawn = drawn_words(random, topics, TERM_DRAWS)
    # A language model names the same few words of a document in each of its proposals, not always the same.
    chosen = [np.sort(random.permuted(drawn, axis=1)[:, :DOCID_WORDS], axis=1) for _ in range(NUM_CANDIDATES)]
    texts = [pc.binary_join(texts_of(one, DOCID_WORDS), " ") for one in chosen]
    in_order = np.arange(NUM_CANDIDATES * len(rows)).reshape(NUM_CANDIDATES, -1).T.ravel()
    candidates = pa.concat_arrays(texts).take(in_order)

    def per_candidate(values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, NUM_CANDIDATES, dtype=np.int32), values)

    # Odd rows may repeat an earlier even one, so that what is repeated is itself no duplicate.
    is_duplicate = (rows % 2 == 1) & (random.random(len(rows)) < 2 * DUPLICATES)
    source = np.where(is_duplicate, (random.random(len(rows)) * rows).astype(np.int64) // 2 * 2, rows)
    content = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in source]
    is_repaired = random.random(len(rows)) < 0.5
    sources = np.repeat(np.where(is_repaired, "repaired", "lm"), NUM_CANDIDATES)
    table = pa.table(
        [
            rows,
            [f"document-{row}" for row in rows],
            pa.array(content, pa.binary(16)),
            per_candidate(candidates),
            per_candidate(pa.array([key_of(text) for text in candidates.to_pylist()], pa.uint64())),
            per_candidate(pa.array(sources, pa.string())),
            per_candidate(pa.array(random.random(len(candidates)), pa.float32())),
            pa.array([["too_few_words"] if repaired else [] for repaired in is_repaired], pa.list_(pa.string())),
            texts_of(drawn, NUM_OWN),
            pa.array([[] for _ in rows], IDENTIFIERS),
        ],
        schema=PROPOSAL_SCHEMA,
    )
    storage.write_parquet(
        Index(folder).shard(FOLDER, piece), table.replace_schema_metadata({COUNTS_KEY: json.dumps({})})
    )


def resolve_all(folder: str, num_workers: int) -> dict[str, Any]:
    """Resolves the proposals and writes the docids."""
    config = validate_config({"index": folder, "docids": {"max_words": DOCID_WORDS}})
    start = time.perf_counter()
    counts = assign_docids(config, Index(folder), num_workers=num_workers)
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak_resident_bytes(), "counts": counts}


def published(folder: str) -> dict[str, Any]:
    """Reads the published docids: their digest, and how far docids and contents are from belonging together one to one."""
    index, digest = Index(folder), hashlib.sha256()
    docids, contents = [], []
    for shard in shards_in(index.path("docids")):
        texts = storage.read_parquet(index.shard("docids", shard), ["docid"]).column("docid").to_pylist()
        digest.update("\n".join([*texts, ""]).encode())
        docids.append(np.array([key_of(text) for text in texts], dtype=np.uint64))
        column = storage.read_parquet(index.shard(FOLDER, shard), ["content"]).column("content")
        contents.append(np.frombuffer(b"".join(column.to_pylist()), dtype="<u8")[::2])
    docid, content = np.concatenate(docids), np.concatenate(contents)
    num_pairs = len(np.unique(docid * np.uint64(0x9E3779B97F4A7C15) + content))
    return {
        "digest": digest.hexdigest(),
        "collisions_left": num_pairs - len(np.unique(docid)),
        "duplicates_apart": num_pairs - len(np.unique(content)),
    }


def write_documents(folder: str, num_rows: int, piece: int) -> None:
    """Writes one file of the corpus."""
    random, rows, topics = rows_of(num_rows, piece)
    titles, texts = (
        vocabulary().take(random.permuted(drawn_words(random, topics, size), axis=1).ravel() % len(vocabulary()))
        for size in (TITLE_WORDS, TEXT_WORDS)
    )
    offsets = np.arange(len(rows) + 1, dtype=np.int32)
    title, text = (
        pc.binary_join(pa.ListArray.from_arrays(offsets * size, values), " ")
        for values, size in ((titles, TITLE_WORDS), (texts, TEXT_WORDS))
    )
    lines = pc.binary_join_element_wise(
        '{"_id": "', pa.array(rows).cast(pa.string()), '", "title": "', title, '", "text": "The ', text, '."}\n', ""
    )
    (Path(folder) / "corpus" / f"{piece:06d}.jsonl").write_text("".join(lines.to_pylist()), encoding="utf-8")


def run_jobs(folder: str) -> dict[str, Any]:
    """Runs the stages on the corpus in `folder`: seconds of each, and the driver's peak memory after it."""
    from jobs import corpus, docids, queries, trie
    from jobs.cluster import ray_session

    config = config_of(folder, shard_size=CORPUS_SHARD)
    figures: dict[str, Any] = {}
    with ray_session():
        for stage, job in zip(STAGES, (corpus, docids, queries, trie), strict=True):
            start = time.perf_counter()
            record = job.run(config)
            assert stage == "trie" or record.counts["rejected"] == 0, record.counts
            figures[f"{stage}_s"] = time.perf_counter() - start
            figures[f"{stage}_peak_bytes"] = peak_resident_bytes()
    return figures


def config_of(folder: str, *, shard_size: int, num_reading_workers: int = 0) -> Config:
    """The configuration of an index of the corpus in `folder`, without a language model."""
    return validate_config(
        {
            "index": str(Path(folder) / "index"),
            "corpus": {"source": str(Path(folder) / "corpus"), "shard_size": shard_size},
            "docids": {"scheme": "keywords", "engine": "fake", "candidates": NUM_CANDIDATES, "max_words": DOCID_WORDS},
            "queries": {"engine": "fake", "num_queries_per_document": 4, "num_spans_per_document": 4},
            "compute": {"num_engine_workers": 2, "num_reading_workers": num_reading_workers},
        }
    )


if __name__ == "__main__":
    main()

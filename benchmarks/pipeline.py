"""How many documents a second become an index, and in how much memory? `python -m benchmarks.pipeline [--quick]`

Four parts, on synthetic documents (`benchmarks.synthetic`):

    resolution   the proposals of 10 million documents, of which one in nine collides and one in a hundred is a duplicate, are
                 resolved and written by one and by two threads; the published files are then searched for shared docids
    pipeline     corpora of 10,000 documents, ten times as many, and so on up to `--documents` go through the production jobs on
                 a local Ray with two workers, all that needs no language model: `benchmarks.stages` says what. With `--work`
                 it can be ended at any time, and the same command goes on.
    reading      the corpus job alone, by one process as one stream and by two in parts; the published files are compared
    shards       one document in each of 10,000 shards goes through the docid job; then ten shards are taken away and the same
                 command finds and makes them

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import report
from benchmarks.stages import FIGURES, STAGES, config_of, run_stages
from benchmarks.synthetic import DOCID_WORDS, num_pieces, write_documents, write_proposals
from zerogr.config.file import validate_config
from zerogr.corpus.stage import FREQUENCY
from zerogr.docids.resolve import key_of
from zerogr.docids.stage import FOLDER, assign_docids
from zerogr.index.index import Index, shards_in
from zerogr.machine import peak_resident_bytes
from zerogr.store import storage

CORPUS_SHARD = 5_000
SMALLEST, COMPARED = 10_000, 100_000
"""Documents of the smallest corpus, and of the one that the largest is compared with."""
PARTS = ("resolution", "pipeline", "reading", "shards")

NOTES = """
- Every run is a process of its own. Peaks are of resident memory, the interpreter and its libraries included.
- `resolution_s`: reading the proposals of all documents, resolving, and writing the docids, with one thread, most of the files
  in the page cache; `resolution_2_workers_s`: the same with two. `same_docids`: both gave every document the same docid.
- `collision_rate`: documents whose first candidate was taken, of all; `told_apart_rate`: those without any free candidate.
  `collisions_left`: docids that documents of different content share, counted from the published files.
- `STAGE_documents_per_s`: of the largest corpus; `STAGE_share_of_rate`: that over the rate of 100,000 documents, so 1 is a
  cost in proportion to the documents. The first rows of the table hold what starting Ray and loading libraries costs.
  `minutes`: of all stages. The engine makes up its answers at once, two docids per document.
- `all_bytes`: the most memory of the driver, Ray and the workers together, shared pages counted once, seen every two seconds.
  `driver_bytes`: the most resident memory of the process that runs the jobs, up to the end of that stage.
- `mapped_s`: opening all published examples as a rank does; `loaded_s`, `first_search_s`, `later_search_s`: the index as a
  search opens it, with the base model untrained, and queries for 10 documents by beam search.
- `reading_N_s`: the corpus job by N processes, start of Ray included. A source below
  `zerogr.corpus.splits.SMALL_BYTES` would be left to one.
- `shard_overhead_s`: the first run's seconds over its shards, whose single documents cost next to nothing. `rerun_s`: the
  second run, start of Ray and resolution of all docids included; `rerun_finding_s`: listing what is pending.
"""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="50,000 proposals and 5,000 documents")
    parser.add_argument("--documents", type=int, help="documents through the pipeline (default: 1 million)")
    parser.add_argument(
        "--work", type=Path, help="keep the pipeline's corpora and indexes there, and go on with what is there"
    )
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
        "pipeline": partial(pipeline, num_documents, arguments.work),
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
        in_processes(partial(write_proposals, folder, num_rows), range(num_pieces(num_rows)))
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


def pipeline(num_documents: int, work: Path | None) -> dict[str, Any]:
    """Returns the figures of the jobs, for corpora of rising size."""
    with tempfile.TemporaryDirectory() as temporary:
        rows, folder = [], work or Path(temporary)
        for size in sizes(num_documents):
            figures = stages_of(folder / f"{size}", size)
            rows += [{"documents": size, "stage": stage, **figures[stage]} for stage in STAGES]
    for row in rows:
        row["documents_per_s"] = row["documents"] / row["seconds"]
    largest = {row["stage"]: row for row in rows[-len(STAGES) :]}
    compared = {
        row["stage"]: row["documents_per_s"] for row in rows if row["documents"] == min(COMPARED, num_documents)
    }
    columns = ("documents", "stage", "seconds", "documents_per_s", "driver_bytes", "all_bytes")
    of_opening = ("loaded_s", "first_search_s", "later_search_s")
    return {
        "num_documents": num_documents,
        "minutes": sum(row["seconds"] for row in largest.values()) / 60,
        "peak_bytes": max(row["all_bytes"] for row in largest.values()),
        **{f"{stage}_documents_per_s": largest[stage]["documents_per_s"] for stage in STAGES[:-1]},
        **{f"{stage}_share_of_rate": largest[stage]["documents_per_s"] / compared[stage] for stage in STAGES[:-1]},
        "examples": largest["examples"]["examples"],
        "mapped_s": largest["examples"]["mapped_s"],
        **{key: largest["opening"][key] for key in of_opening},
        "stages": [{column: _short(row[column]) for column in columns} for row in rows],
    }


def sizes(num_documents: int) -> list[int]:
    """Returns how large the corpora are, the largest last."""
    found, size = [], SMALLEST
    while size < num_documents:
        found.append(size)
        size *= 10
    return [*found, num_documents]


def stages_of(folder: Path, num_documents: int) -> dict[str, dict[str, float]]:
    """Returns the figures of one corpus, as `run_stages`; of a finished one nothing is left but them."""
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    kept = folder / FIGURES
    if kept.exists() and STAGES[-1] in (figures := json.loads(kept.read_text())):
        return dict(figures)
    say(f"writing a corpus of {num_documents:,} documents")
    pieces = [
        piece for piece in range(num_pieces(num_documents)) if not (folder / "corpus" / f"{piece:06d}.jsonl").exists()
    ]
    in_processes(partial(write_documents, str(folder), num_documents), pieces)
    figures = in_fresh_process(run_stages, str(folder), num_documents, CORPUS_SHARD)
    for path in folder.iterdir():
        if path != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return figures


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def reading(num_documents: int) -> dict[str, Any]:
    """Returns the figures of the corpus job, by one process and by two."""
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing a corpus of {num_documents:,} documents")
        (Path(folder) / "corpus").mkdir()
        in_processes(partial(write_documents, folder, num_documents), range(num_pieces(num_documents)))
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
        for piece in range(num_pieces(num_shards)):
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


def in_processes(function: Callable[[int], None], pieces: Iterable[int]) -> None:
    """Calls `function` with every piece's number, in two processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        for _ in processes.map(function, pieces):
            pass


def resolve_all(folder: str, num_workers: int) -> dict[str, Any]:
    """Resolves the proposals and writes the docids."""
    config = validate_config({"index": folder, "docids": {"max_words": DOCID_WORDS}})
    storage.delete(Index(folder).path("docids"))  # of the run before
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


if __name__ == "__main__":
    main()

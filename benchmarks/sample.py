"""Writes a small part of a judged collection, with queries to learn from and others to be measured on.

    python -m benchmarks.sample DATA/cranfield small/cranfield --documents 500
    python -m benchmarks.sample DATA/scifact small/scifact --documents 300 --split train --split test

Both folders are in BEIR's layout. Queries are drawn by the seed, in turn for train and test, and each comes with all documents
that it was judged with, as long as they find room; so no judgement is lost, and no query asks for what is not there. What
room is left is filled with documents that nobody asks for. A single split is shared out, every other query to train.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from zerogr.corpus.collection import Collection
from zerogr.corpus.judged import Qrels
from zerogr.errors import UserError


def main() -> None:
    """Writes the folder that the command line names, and says what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--documents", type=int, required=True, help="how many at most")
    parser.add_argument("--split", action="append", help="one to share out, or train's and test's (default: test)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    options = parser.parse_args()
    splits = options.split or ["test"]
    if len(splits) > 2:
        parser.error("--split is given once or twice")
    try:
        both = shares(options.collection, splits, options.seed)
        chosen = drawn(*both, options.documents)
        counts = write(options.collection, options.out, chosen, both, options.documents, options.seed)
    except UserError as error:
        parser.error(str(error))
    print(json.dumps(counts))


def shares(collection: Path, splits: list[str], seed: int) -> tuple[Qrels, Qrels]:
    """Returns what there is to learn from and to be measured on, each in the order of the draw."""
    found = [Collection.load(str(collection), split).qrels for split in splits]
    orders = [random.Random(seed).sample(sorted(each), len(each)) for each in found]
    if len(found) == 2:
        return {query: found[0][query] for query in orders[0]}, {query: found[1][query] for query in orders[1]}
    return {query: found[0][query] for query in orders[0][::2]}, {query: found[0][query] for query in orders[0][1::2]}


def drawn(train: Qrels, test: Qrels, num_documents: int) -> set[str]:
    """Returns the documents of the queries that find room, train's and test's in turn."""
    chosen: set[str] = set()
    for query in chain.from_iterable(zip_longest(train, test)):
        wanted = {*train.get(query, ()), *test.get(query, ())} if query is not None else set()
        if len(chosen | wanted) <= num_documents:
            chosen |= wanted
    return chosen


def write(
    collection: Path, out: Path, chosen: set[str], both: tuple[Qrels, Qrels], num_documents: int, seed: int
) -> dict[str, int]:
    """Writes the folder; returns how many documents and queries it has.

    Raises:
        UserError: The documents of no training query, or of no test query, find room.
    """
    train, test = ({query: each for query, each in share.items() if each.keys() <= chosen} for share in both)
    if not train or not test:
        raise UserError(f"{num_documents} documents have room for {len(train)} training and {len(test)} test queries")
    rows = list(_rows(collection / "corpus.jsonl"))
    others = [row["_id"] for row in rows if row["_id"] not in chosen]
    room = min(len(others), num_documents - len(chosen))
    kept = chosen | set(random.Random(seed).sample(others, room))
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    _write_rows(out / "corpus.jsonl", (row for row in rows if row["_id"] in kept))
    queries = (row for row in _rows(collection / "queries.jsonl") if row["_id"] in train or row["_id"] in test)
    _write_rows(out / "queries.jsonl", queries)
    for split, share in (("train", train), ("test", test)):
        lines = [f"{query}\t{document}\t{grade}\n" for query in share for document, grade in share[query].items()]
        (out / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
    return {"documents": len(kept), "judged documents": len(chosen), "train": len(train), "test": len(test)}


def _rows(file: Path) -> Iterable[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()

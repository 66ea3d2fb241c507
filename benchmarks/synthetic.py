"""Synthetic documents, as many as are asked for: real words, drawn by Zipf's law within a topic, in three scripts.

Not a benchmark itself. Nine documents of ten are made of the topical words of Python's reference text, the others of as many
made-up words in Cyrillic, and in Han without spaces. One in a hundred repeats an earlier one, and behind every thousandth
stands a row that cannot be used. Each piece of the corpus, a file of JSON Lines, is a function of its number and the corpus'
size.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zerogr.corpus.document import Document
from zerogr.corpus.pystdlib import read_pystdlib
from zerogr.docids.resolve import key_of
from zerogr.docids.stage import FOLDER, IDENTIFIERS, PROPOSAL_SCHEMA
from zerogr.docids.words import NUM_OWN
from zerogr.index.index import Index
from zerogr.llm.generation import COUNTS_KEY
from zerogr.store import storage
from zerogr.text.words import FUNCTION_WORDS, words

DOCUMENTS_PER_TOPIC, TOPIC_WORDS, TOPIC_DISTANCE, ZIPF_EXPONENT = 25_000, 1000, 37, 1.4
NUM_CANDIDATES, DOCID_WORDS, TERM_DRAWS = 2, 8, 64
DUPLICATES = 0.01
TITLE_WORDS, TEXT_WORDS = 6, 60
PIECE = 10_000
"""Documents of a file."""
PER_GARBAGE = 1000
"""Documents behind which a row stands that cannot be used."""
SCRIPTS = {"latin": 0.9, "cyrillic": 0.05, "han": 0.05}
"""And the share of the documents that are written in each."""
_CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувжшыз")
_HAN = (0x4E00, 6000)
"""The first character, and how many are used."""


def num_pieces(num_rows: int) -> int:
    """Returns the files of a corpus of so many documents."""
    return -(-num_rows // PIECE)


def num_garbage(num_rows: int) -> int:
    """Returns the rows of such a corpus that cannot be used."""
    whole, rest = divmod(num_rows, PIECE)
    return whole * (PIECE // PER_GARBAGE) + rest // PER_GARBAGE


@cache
def vocabulary() -> pa.Array:
    """The topical words of Python's reference text, the frequent ones first."""
    documents = (row for row in read_pystdlib() if isinstance(row, Document))
    counts = Counter(word for document in documents for word in words(document.text))
    return pa.array(
        [word for word, _ in counts.most_common() if word.isascii() and word.isalpha() and word not in FUNCTION_WORDS]
    )


@cache
def _in_all_scripts() -> pa.Array:
    """The words, then as many in Cyrillic, then as many in Han."""
    latin = vocabulary().to_pylist()
    first, number = _HAN
    han = [chr(first + i * 7919 % number) + chr(first + i * 104_729 % number) for i in range(len(latin))]
    return pa.array([*latin, *(word.translate(_CYRILLIC) for word in latin), *han])


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
    rows = np.arange(piece * PIECE, min((piece + 1) * PIECE, num_rows))
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


def write_documents(folder: str, num_rows: int, piece: int) -> None:
    """Writes one file of the corpus."""
    random, rows, topics = rows_of(num_rows, piece)
    script = random.choice(len(SCRIPTS), size=len(rows), p=list(SCRIPTS.values()))
    titles, texts = (_texts(random, topics, script, size) for size in (TITLE_WORDS, TEXT_WORDS))
    source = np.arange(len(rows))
    is_duplicate = random.random(len(rows)) < DUPLICATES
    source[is_duplicate] = (random.random(is_duplicate.sum()) * source[is_duplicate]).astype(np.int64)
    lines = pc.binary_join_element_wise(
        '{"_id": "', pa.array(rows).cast(pa.string()), '", "title": "', titles.take(source), '", "text": "The ',
        texts.take(source), '."}\n', "",
    ).to_pylist()  # fmt: skip
    for place in range(PER_GARBAGE, len(lines) + 1, PER_GARBAGE):
        lines[place - 1] += _garbage(place // PER_GARBAGE, int(rows[place - 1]))
    file = Path(folder) / "corpus" / f"{piece:06d}.jsonl"
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.rename(file)


def _texts(random: np.random.Generator, topics: np.ndarray, script: np.ndarray, size: int) -> pa.Array:
    """Returns a text of `size` words for each topic (int64 [n]), in the script of that number (int64 [n])."""
    drawn = random.permuted(drawn_words(random, topics, size), axis=1) % len(vocabulary())
    values = _in_all_scripts().take((drawn + script[:, None] * len(vocabulary())).ravel())
    each = pa.ListArray.from_arrays(np.arange(len(topics) + 1, dtype=np.int32) * size, values)
    is_spaced = pa.array(script != list(SCRIPTS).index("han"))
    return pc.if_else(is_spaced, pc.binary_join(each, " "), pc.binary_join(each, ""))


def _garbage(number: int, before: int) -> str:
    """Returns a row that cannot be used, of one of four kinds."""
    kinds = (
        "this is no JSON\n",
        json.dumps({"_id": f"empty-{before}", "title": "", "text": " "}) + "\n",
        json.dumps({"_id": "", "title": "a document", "text": "without a name"}) + "\n",
        json.dumps({"_id": str(before), "title": "a second document", "text": "of the same name"}) + "\n",
    )
    return kinds[number % len(kinds)]

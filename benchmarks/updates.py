"""Do many small updates of an index stay cheap and exact? `python -m benchmarks.updates`

An index of a few hundred synthetic documents, whose retriever is a small model trained from scratch, gets single documents, one
update after the other. What is asked: is every document found by its own queries after its update, do the old ones stay, does
an update take as long at the end as at the beginning, and does compaction change any answer? The last line printed is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.report import report
from jobs import index as index_job
from jobs import update as update_job
from zerogr.config.file import config_of
from zerogr.editing.measure import hits_of
from zerogr.editing.rehearsal import kept, new_queries
from zerogr.editing.update import Request
from zerogr.index.index import Index
from zerogr.index.versions import Version, folder_of
from zerogr.retriever import Retriever

NUM_WORDS, TOPIC_WORDS = 600, 12
KEPT_QUERIES = 16_384
NOTES = """
- Documents: 12 words of a topic among 600 pronounceable ones, 30 in all. The model: two layers of 64, trained from scratch on
  the documents' spans, ten of each. Each update adds one document, with the method named, which may know all queries
  (`update.kept_queries` 16,384), and measures 64 old queries, as `zerogr update` does.
- `first_s`, `last_s`: median seconds of the first and of the last tenth of the updates, measuring included.
- `found_after_update`: share of the added documents that are found first by the first of their own queries, right after.
- `found_at_the_end`: the same, of all of them, after the last update.
- `old_before`, `old_after`: share of a sample of the first documents' queries that find their document first.
- `compaction_changed`: answers of 100 queries, 20 documents each, that differ after compaction, in documents, order or scores.
"""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 updates instead of 1,000")
    parser.add_argument("--updates", type=int, help="another number of updates")
    parser.add_argument("--documents", type=int, default=300, help="that the index begins with (default: 300)")
    parser.add_argument("--method", default="certificate", help="default: certificate")
    parser.add_argument("--out", type=Path, help="also write the figures to this Markdown file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    number = arguments.updates or (20 if arguments.quick else 1000)
    with tempfile.TemporaryDirectory(prefix="zerogr-updates-") as folder:
        figures = run(Path(folder), arguments.documents, number, arguments.method)
    report(f"{number} updates of one document each", figures, arguments.out, NOTES)


def run(folder: Path, num_documents: int, num_updates: int, method: str) -> dict[str, Any]:
    """Returns the figures."""
    rows = documents(num_documents + num_updates)
    uri = build(folder, rows[:num_documents])
    root = Index(uri)
    config = config_of({**root.manifest()["config"], "index": uri})
    old = kept(root, config, Version.of(root.manifest()), 256, for_measuring=True)
    before = np.mean(hits_of(Retriever.load(uri, device="cpu"), old))
    seconds, found = [], []
    overrides = [
        "update.max_forgetting=1",
        "update.sample_size=64",
        f"update.kept_queries={KEPT_QUERIES}",
        f"update.method.name={method}",
    ]
    for i, row in enumerate(rows[num_documents:]):
        source = folder / "one.jsonl"
        source.write_text(json.dumps(row) + "\n", encoding="utf-8")
        start = time.monotonic()
        done = update_job.run(uri, Request(source=str(source)), overrides)
        seconds.append(time.monotonic() - start)
        found.append(done["measured"]["new_after"] == 1.0)
        if (i + 1) % 50 == 0:
            print(f"{i + 1} updates, {median(seconds[-50:]):.2f} s each, {np.mean(found):.3f} found", flush=True)
    retriever = Retriever.load(uri, device="cpu")
    added = [new_queries(Index(root.path(folder_of(i + 1))), config)[0] for i in range(num_updates)]
    figures = {
        "documents": num_documents,
        "updates": num_updates,
        "method": method,
        "first_s": round(median(seconds[: max(num_updates // 10, 1)]), 3),
        "last_s": round(median(seconds[-max(num_updates // 10, 1) :]), 3),
        "last_to_first": round(
            median(seconds[-max(num_updates // 10, 1) :]) / median(seconds[: max(num_updates // 10, 1)]), 3
        ),
        "found_after_update": round(float(np.mean(found)), 4),
        "found_at_the_end": round(float(np.mean(hits_of(retriever, added))), 4),
        "old_before": round(float(before), 4),
        "old_after": round(float(np.mean(hits_of(retriever, old))), 4),
    }
    return {**figures, "compaction_changed": _changed_by_compaction(uri, [each.example.query for each in old[:100]])}


def _changed_by_compaction(uri: str, queries: list[str]) -> int:
    def answers() -> list[Any]:
        return Retriever.load(uri, device="cpu").search(queries, k=20)

    before = answers()
    update_job.run(uri, Request(compact=True), ["update.max_forgetting=1"])
    return sum(one != other for one, other in zip(before, answers(), strict=True))


def documents(number: int) -> list[dict[str, str]]:
    """Returns synthetic documents, each on a topic of its own."""
    draw = np.random.default_rng(0)
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    words = sorted({"".join(draw.choice(syllables, 3)) for _ in range(2 * NUM_WORDS)})[:NUM_WORDS]
    rows = []
    for i in range(number):
        topic = draw.choice(words, TOPIC_WORDS, replace=False)
        rows.append({"_id": f"d{i}", "title": "", "text": " ".join(draw.choice(topic, 30))})
    return rows


def build(folder: Path, rows: list[dict[str, str]]) -> str:
    """Returns the URI of an index whose retriever is trained from scratch."""
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = _model(folder / "model", [row["text"] for row in rows])
    tree = {
        "index": str(folder / "index"),
        "instruction": "Find it.",
        "corpus": {"source": str(corpus), "shard_size": 64},
        "docids": {"scheme": "tfidf"},
        "queries": {"num_queries_per_document": 0, "num_spans_per_document": 10, "span_words": [4, 10]},
        "retriever": {"model": str(model)},
        "training": {"num_epochs": 20, "batch_size": 32, "learning_rate": 3e-3, "precision": "fp32"},
    }
    index_job.run(config_of(tree))
    return str(folder / "index")


def _model(folder: Path, texts: list[str]) -> Path:
    """Saves a Llama of two layers with a byte-pair tokenizer, untrained."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

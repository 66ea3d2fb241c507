"""A retriever of five docids and what it is asked, for the tests of editing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zerogr.config.file import config_of
from zerogr.decoding.terms import Terms
from zerogr.editing.method import New, Setting
from zerogr.editing.positions import Reader
from zerogr.editing.sample import Known, Ranked, Sample
from zerogr.editing.states import States
from zerogr.editing.statistics import merged, sum_of_keys
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import load_model
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, Relevant, TextExample
from zerogr.training.normalisation import NORMALISATIONS
from zerogr.trie import DocidTrie

INSTRUCTION = "Find the text."
DOCIDS = ["coffee roast beans", "coffee roast grind", "chess knight", "chess rook pawn", "bread flour yeast"]
QUERIES = ["how to roast", "what grinds", "a piece that jumps", "towers", "what rises"]
ALLOWED = NORMALISATIONS["allowed"]


def known(number: int, query: str | None = None) -> Known:
    docid = DOCIDS[number]
    example = TextExample(INSTRUCTION, query or QUERIES[number], [Relevant(1.0, [(docid, 1.0)])])
    return Known(f"doc-{number}", docid, example)


def setting_of(folder: Path, tmp_path: Path) -> Setting:
    """Returns a retriever in float64, so that references can be compared closely."""
    model, tokenizer = load_model(str(folder), dtype="float64")
    chat = ChatFormat.of(tokenizer)
    trie = DocidTrie.build([chat.docid(docid) for docid in DOCIDS])
    choices = Choices(trie, chat.end_token_id)
    config = config_of({"training": {"precision": "fp32"}, "update": {"method": {"name": "none"}}})

    def tokenised(queries: Any) -> Examples:
        return Examples.build([each.example for each in queries], chat, choices)

    reader = Reader(model, choices)
    sums, number = sum_of_keys(reader, tokenised([known(i) for i in range(3)]), [0, 1])
    return Setting(
        model=model, chat=chat, trie=trie, choices=choices, terms=Terms(), states=States(), statistics=merged([(sums, number)]),
        config=config, tokenised=tokenised, checkpoints=str(tmp_path / "checkpoints"),
    )  # fmt: skip


def new_of(setting: Setting, numbers: list[int]) -> New:
    taught = [known(i) for i in numbers] + [known(i, f"more on {QUERIES[i]}") for i in numbers]
    old = [known(i) for i in range(len(DOCIDS)) if i not in numbers]
    return New(known=taught, examples=setting.tokenised(taught), old=sample_of(old))


def sample_of(queries: list[Known]) -> Sample:
    """Returns queries of old documents as an update has them."""
    return Sample.of(Ranked(number=0, hash=place, layer=0, known=each) for place, each in enumerate(queries))

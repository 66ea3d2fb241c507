"""The small real things the tests run on: a corpus of a few dozen documents, a language model of 60k weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOPICS = {
    "coffee": "roast beans grind water espresso crema bitter aroma filter kettle",
    "sailing": "keel mast rudder jib wind tack harbour tide anchor rope",
    "chess": "knight bishop rook pawn endgame opening castle checkmate clock gambit",
    "bread": "flour yeast oven crust dough sourdough knead starter rye proof",
    "bicycles": "gear chain brake pedal saddle spoke tyre frame handlebar pump",
}
DETAILS = "history repair price beginner expert safety storage measurement"


def documents() -> list[dict[str, Any]]:
    """Returns 40 documents, eight on each topic, as BEIR rows."""
    rows = []
    for topic, terms in TOPICS.items():
        words = terms.split()
        for number, detail in enumerate(DETAILS.split()):
            picked = [words[(number + i) % len(words)] for i in range(6)]
            rows.append(
                {
                    "_id": f"{topic}-{number}",
                    "title": f"{topic} {detail}" if number % 2 else "",
                    "text": f"About the {detail} of {topic}: the {' and the '.join(picked)}, with 3.{number} examples.",
                }
            )
    return rows


def write_collection(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Writes a BEIR folder with a question per document; returns it."""
    rows = documents() if rows is None else rows
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    queries = [{"_id": f"q{i}", "text": f"what about {row['text'].split(':')[0][6:]}"} for i, row in enumerate(rows)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries), encoding="utf-8")
    judgements = "".join(f"q{i}\t{row['_id']}\t1\n" for i, row in enumerate(rows))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judgements}", encoding="utf-8")
    return folder


def save_model(folder: Path, *, seed: int = 0, initializer_range: float = 0.02) -> Path:
    """Saves a Llama of two layers with a byte-pair tokenizer of 512 tokens in ChatML; returns its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{row['title']} {row['text']}" for row in documents()), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=initializer_range,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def settings(index: str, collection: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """Returns the configuration tree of a fast index: fake generators, the tiny model as retriever."""
    tree: dict[str, Any] = {
        "index": index,
        "instruction": "Find the text that answers.",
        "corpus": {"source": str(collection), "shard_size": 8},
        "docids": {"scheme": "keywords", "engine": "fake", "model": str(model), "min_words": 6, "max_words": 8},
        "queries": {"engine": "fake", "model": str(model), "num_queries_per_document": 3, "num_spans_per_document": 4},
        "retriever": {"model": str(model)},
        "training": {
            "num_epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "precision": "fp32",
            "checkpoint_every": 5, "evaluate_every": 10,
        },
        "compute": {"num_engine_workers": 1, "num_cpus_per_engine": 1, "num_cpus_per_trainer": 1},
    }  # fmt: skip
    if changes.get("docids__scheme", "keywords") != "keywords":
        tree["docids"] = {}  # those are settings of keywords alone
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return tree


def save_cross_encoder(folder: Path) -> Path:
    """Saves a BERT of one layer with a head of one score, untrained; returns its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator((f"{row['title']} {row['text']}" for row in documents()), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder

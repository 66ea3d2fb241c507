"""The work that a configuration asks for, in tokens and pairs, before any hardware is thought of."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from zerogr.config.tree import Config
from zerogr.cost.texts import Texts
from zerogr.docids.prompts import docid_wording
from zerogr.llm.prompts import QUERY_PREFILL, QUERY_USER
from zerogr.training.examples import MOST_HELD_OUT

CHAT_TOKENS = 32
"""Of a generator's chat format around a prompt, the system turn of SmolLM2 included."""
QUERY_TOKENS = 15.5
"""A pseudo-query with its end: 15 (H200, docs/gpu.md) to 15.7 (vLLM, benchmarks/results/generation-vllm.md), of 32 allowed."""
DOCID_TOKENS = 28.6
"""A proposal of a published 135M model, of 32 allowed: it seldom ends by itself (benchmarks/results/generation-vllm.md)."""
TUNED_DOCID_TOKENS = 12.6
"""Of a model tuned on titles (docs/log.md, 2026-11-21); taken for every model that is asked by rules."""
KEPT = {True: 0.6, False: 1.0}
"""Of the samples, with `queries.on_topic` and without. With: .32 (demo), .53 (adi), .61 and .69 (SciFact); without: assumed."""
HEADER_TOKENS, TURN_TOKENS = 8, 5
"""Of the retriever's prompt: around the instruction, once a row; around the answer, in every pair."""
OPEN_TOKENS = 2.3
"""Of a docid that the trie leaves open, which is what `training.normalise: allowed` learns: SciFact whole (docs/gpu.md)."""
WHOLE_TOKENS = 12.4
"""Of a docid (docs/log.md, 2026-11-22)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What a generating stage asks of its model."""

    prompt_tokens: float
    new_tokens: float
    longest: float
    """Tokens of one prompt with its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What the retriever learns."""

    pairs: float
    """Over all epochs, without those that are held out."""
    steps: int
    pair_tokens: float
    """Of a pair as it stands alone: prefix, query, what is learnt of the docid."""
    model_tokens: float
    """Of a pair's share of a packed row."""
    stored_pairs: float
    """Of one epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of a whole index."""

    texts: Texts
    docids: Writing | None
    """None where no language model proposes docids, or one that is asked in a way of its own."""
    queries: Writing | None
    num_queries: int
    """B."""
    kept_queries: float
    """Of a document."""
    query_bytes: float
    learning: Learning


def work_of(config: Config, texts: Texts, *, row_tokens: int) -> Work:
    """Returns the work of an index; `row_tokens` is how long a packed row is where the configuration does not say."""
    settings, count = config.queries, texts.num_documents
    num_queries = settings.num_queries_per_document
    kept = num_queries * KEPT[settings.on_topic]
    return Work(
        texts=texts,
        docids=_docids(config.docids, texts) if hasattr(config.docids, "prompt_style") else None,
        queries=_writing(
            texts.tokens_of(
                len(QUERY_USER + QUERY_PREFILL + config.instruction) + texts.excerpt_bytes(settings.document_words)
            ),
            num_queries,
            min(QUERY_TOKENS, settings.max_tokens),
            count,
        )
        if num_queries
        else None,
        num_queries=num_queries,
        kept_queries=kept,
        query_bytes=QUERY_TOKENS * texts.document_bytes / max(texts.tokens_of(texts.document_bytes), 1),
        learning=_learning(config, texts, kept, config.training.row_tokens or row_tokens),
    )


def _docids(settings: Any, texts: Texts) -> Writing:
    wording = docid_wording(settings)
    usual = DOCID_TOKENS if settings.prompt_style == "brief" else TUNED_DOCID_TOKENS
    return _writing(
        texts.tokens_of(len(wording) + texts.excerpt_bytes(settings.document_words)),
        settings.candidates,
        min(usual, settings.max_tokens),
        texts.num_documents,
    )


def _writing(text_tokens: float, num_samples: int, answer_tokens: float, num_documents: int) -> Writing:
    prompt = text_tokens + CHAT_TOKENS
    return Writing(
        prompt_tokens=num_documents * prompt,
        new_tokens=num_documents * num_samples * answer_tokens,
        longest=prompt + answer_tokens,
    )


def _learning(config: Config, texts: Texts, kept: float, row_tokens: int) -> Learning:
    training, spans = config.training, texts.spans_per_document
    per_document = spans + kept
    span_tokens = min(texts.tokens_of(texts.span_bytes), training.max_query_tokens)
    asked = (spans * span_tokens + kept * min(QUERY_TOKENS, training.max_query_tokens)) / max(per_document, 1e-9)
    instruction = min(texts.tokens_of(len(config.instruction.encode())), training.max_instruction_tokens)
    prefix = HEADER_TOKENS + instruction
    learnt = OPEN_TOKENS if training.normalise == "allowed" else WHOLE_TOKENS + 1
    if training.loss.needs_negatives:
        learnt *= 1 + config.negatives.number / config.negatives.every
    own = asked + TURN_TOKENS + learnt - 1  # the last token is predicted and not computed
    stored = texts.num_documents * per_document
    pairs = (stored - min(training.evaluation_fraction * stored, MOST_HELD_OUT)) * training.num_epochs
    return Learning(
        pairs=pairs,
        steps=ceil(pairs / training.batch_size),
        pair_tokens=prefix + asked + TURN_TOKENS + learnt,
        model_tokens=own * (1 + prefix / max(row_tokens - prefix, own)),
        stored_pairs=stored,
    )

"""How fast a core of this machine writes and learns: what the kinds of processors that `zerogr plan` knows were measured with.

Of the embedded model, while all cores are at work as they are in a stage: an engine of one thread on each, then a trainer on
all of them. A core by itself may be twice as fast, where two are threads of one or share what memory carries.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from zerogr.config.file import validate_config
from zerogr.config.names import EMBEDDED_MODEL
from zerogr.config.tree import QueriesConfig
from zerogr.corpus.document import Document
from zerogr.corpus.pystdlib import read_pystdlib
from zerogr.cost.rates import MOST_ENGINES
from zerogr.docids.rules import Terms
from zerogr.llm.chat import ChatFormat
from zerogr.llm.engines.engine import Prompt, Sampling
from zerogr.llm.engines.transformers import TransformersEngine
from zerogr.llm.models import load_model, resolve_model
from zerogr.llm.prompts import query_prompt
from zerogr.machine import num_cores
from zerogr.queries.spans import make_spans
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import words
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples, Relevant, TextExample, epoch_order
from zerogr.training.learner import TrainingSettings
from zerogr.training.loop import train
from zerogr.training.packing import passes
from zerogr.training.sizes import sizes_for
from zerogr.trie import DocidTrie

logger = logging.getLogger(__name__)

NEW_TOKENS, SAMPLES = 24, 2
BATCH_SIZE = 32
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one core does while the others do the same."""

    load_s: float
    """Processor seconds from the start of a process until an engine has loaded the model."""
    prompt_tokens_per_s: float
    """Prompts of the query stage with documents of 48 words, 16 in a batch, and one token of answer."""
    new_tokens_per_s: float
    """Two answers of 24 tokens each, on top of reading their prompt."""
    training_tokens_per_s: float
    """Tokens through the model, padding included, of steps of 32 pairs, the trie's choices alone in the loss, as by default;
    the optimiser's step is part of it."""
    training_step_s: float
    tokens_per_pair: float


def measure(model: str = EMBEDDED_MODEL, *, num_prompts: int = 16, num_steps: int = 3) -> Measured:
    """Measures; a minute on a fast machine, five on a slow one."""
    num_engines = min(num_cores(), MOST_ENGINES)
    logger.info("measuring what this machine's %d cores do with %s", num_cores(), model)
    with ProcessPoolExecutor(num_engines, mp_context=get_context("spawn")) as engines:
        found = list(engines.map(_writing, [model] * num_engines, [num_prompts] * num_engines))
    writing = {name: fmean(one[name] for one in found) for name in found[0]}
    before = torch.get_num_threads()
    torch.set_num_threads(num_cores())
    try:
        return Measured(**writing, **_learning(model, num_steps))
    finally:
        torch.set_num_threads(before)


def passages(chat: ChatFormat, count: int) -> tuple[list[TextExample], Choices]:
    """Returns at least so many pairs of Python's reference text, and what the trie of its docids leaves open.

    Queries are passages and keyword sets, docids the heaviest terms.
    """
    documents = [row for row in read_pystdlib() if isinstance(row, Document)]
    frequency = DocumentFrequency()
    for document in documents:
        frequency.add(words(f"{document.title}\n{document.text}"))
    instruction = validate_config({}).instruction
    rows, docids = [], []
    for number, document in enumerate(documents[: -(-count // 4)]):  # of eight spans some are the same
        docid = " ".join(Terms.of(document.title, document.text, frequency).ranked[:8])
        docids.append(docid)
        spans = make_spans(document.title, document.text, frequency, 8, number)
        rows += [TextExample(instruction, span, [Relevant(1.0, [(docid, 1.0)])]) for span in spans]
    return rows, Choices(DocidTrie.build([chat.docid(docid) for docid in docids]), chat.end_token_id)


class NoCheckpoints:
    """The `Checkpointer` that keeps nothing."""

    def save(self, weights: Any, optimizer: Any, step: int) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Does nothing."""

    def restore(self, weights: Any, optimizer: Any) -> int:
        """Returns 0: there is none."""
        return 0


def _writing(model: str, num_prompts: int) -> dict[str, float]:
    """Of one engine; the others run at the same time."""
    torch.set_num_threads(1)
    engine = TransformersEngine(model, device="cpu")
    load_s = time.process_time()
    settings, instruction = QueriesConfig(document_words=48), validate_config({}).instruction
    documents = [row for row in read_pystdlib() if isinstance(row, Document)][:num_prompts]
    turns = [query_prompt(settings, {"title": d.title, "text": d.text}, instruction) for d in documents]

    def run(num_samples: int, max_tokens: int) -> tuple[float, int, int]:
        prompts = [Prompt(user=user, prefill=prefill, seeds=tuple(range(num_samples))) for user, prefill in turns]
        start = time.perf_counter()
        found = engine.generate(prompts, Sampling(max_tokens=max_tokens, temperature=0.7, top_p=0.95))
        seconds = time.perf_counter() - start
        return seconds, sum(one.num_prompt_tokens for one in found), sum(one.num_output_tokens for one in found)

    run(1, 1)
    reading_s, num_read, _ = run(1, 1)
    all_s, _, num_new = run(SAMPLES, NEW_TOKENS)
    return {
        "load_s": load_s,
        "prompt_tokens_per_s": num_read / reading_s,
        "new_tokens_per_s": num_new / (all_s - reading_s),
    }


def _learning(model_name: str, num_steps: int) -> dict[str, float]:
    """Of one core's share, behind one step of warm-up."""
    model, tokenizer = load_model(resolve_model(model_name), device="cpu", dtype=torch.float32)
    chat, num_examples = ChatFormat.of(tokenizer), (num_steps + 1) * BATCH_SIZE
    rows, choices = passages(chat, num_examples)
    examples = Examples.build(rows, chat, choices)
    examples = examples.take(epoch_order(np.arange(len(examples)), SEED, 0)[:num_examples])
    settings = TrainingSettings(
        num_epochs=1, batch_size=BATCH_SIZE, learning_rate=1e-4, normalise="allowed", evaluation_fraction=0.0,
        evaluate_every=1, checkpoint_every=10**9, seed=SEED,
    )  # fmt: skip
    marks = [time.perf_counter()]
    train(
        model, examples, settings, checkpointer=NoCheckpoints(), choices=choices,
        report=lambda _: marks.append(time.perf_counter()),
    )  # fmt: skip
    sizes = sizes_for(model, None, None, device=torch.device("cpu"))
    steps = np.split(epoch_order(np.arange(num_examples), SEED, 0), num_steps + 1)
    tokens = [sum(batch.tokens.numel() for batch in passes(examples, step, **sizes._asdict())) for step in steps]
    step_s = float(median(np.diff(marks)[1 : num_steps + 1]))
    num_tokens = sum(tokens[1:]) / num_steps
    return {
        "training_tokens_per_s": num_tokens / step_s / num_cores(),
        "training_step_s": step_s,
        "tokens_per_pair": num_tokens / BATCH_SIZE,
    }

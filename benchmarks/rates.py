"""At which rates does one core of this machine write and learn? `python -m benchmarks.rates [--quick]`

What `zerogr plan` counts with, of the embedded model on one thread: prompt tokens and new tokens of the transformers engine,
and tokens through the model while training. The clock is the processor's: other work on the machine costs little precision,
and the wall time of an idle core is the same.

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.report import report
from benchmarks.training import SEED, NoCheckpoints, passages
from zerogr.config.names import EMBEDDED_MODEL
from zerogr.config.tree import QueriesConfig
from zerogr.corpus.document import Document
from zerogr.corpus.pystdlib import read_pystdlib
from zerogr.llm.chat import ChatFormat
from zerogr.llm.engines.engine import Prompt, Sampling
from zerogr.llm.engines.transformers import TransformersEngine
from zerogr.llm.models import fastest_dtype, load_model, resolve_model
from zerogr.llm.prompts import query_prompt
from zerogr.training.examples import epoch_order
from zerogr.training.learner import TrainingSettings
from zerogr.training.loop import train
from zerogr.training.packing import passes
from zerogr.training.sizes import sizes_for

NEW_TOKENS, SAMPLES = 24, 2
BATCH_SIZE = 32

NOTES = """
- Processor seconds of one thread. `prompt_tokens_per_s`: prompts of the query stage with documents of 48 words, 16 in
  a batch, and one token of answer; `new_tokens_per_s`: two answers of 24 tokens each on top.
- `training_tokens_per_s`: tokens through the model, padding included, of steps of 32 pairs, the trie's choices alone in the
  loss, as by default; the optimiser's step is part of it.
"""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 prompts, one step of training")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a folder or a Hugging Face name")
    parser.add_argument("--out", type=Path, help="also write the figures to this Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"model": arguments.model, "dtype": str(fastest_dtype("cpu")).removeprefix("torch.")}
    figures |= writing(arguments.model, 4 if arguments.quick else 16)
    figures |= learning(arguments.model, 1 if arguments.quick else 3)
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    report("What one core writes and learns", rounded, arguments.out, NOTES)


def writing(model: str, num_prompts: int) -> dict[str, float]:
    """Returns the rates of the transformers engine."""
    start = time.process_time()
    engine = TransformersEngine(model, device="cpu")
    load_s = time.process_time() - start
    settings = QueriesConfig(document_words=48)
    documents = [row for row in read_pystdlib() if isinstance(row, Document)][:num_prompts]
    turns = [query_prompt(settings, {"title": d.title, "text": d.text}, "Find the documentation.") for d in documents]

    def run(num_samples: int, max_tokens: int) -> tuple[float, int, int]:
        prompts = [Prompt(user=user, prefill=prefill, seeds=tuple(range(num_samples))) for user, prefill in turns]
        start = time.process_time()
        found = engine.generate(prompts, Sampling(max_tokens=max_tokens, temperature=0.7, top_p=0.95))
        seconds = time.process_time() - start
        return seconds, sum(one.num_prompt_tokens for one in found), sum(one.num_output_tokens for one in found)

    run(1, 1)
    reading_s, num_read, _ = run(1, 1)
    all_s, _, num_new = run(SAMPLES, NEW_TOKENS)
    return {
        "load_s": load_s,
        "prompt_tokens_per_s": num_read / reading_s,
        "new_tokens_per_s": num_new / (all_s - reading_s),
    }


def learning(model_name: str, num_steps: int) -> dict[str, float]:
    """Returns the rate of training, behind one step of warm-up."""
    model, tokenizer = load_model(resolve_model(model_name), device="cpu", dtype=torch.float32)
    num_examples = (num_steps + 1) * BATCH_SIZE
    examples, choices = passages(ChatFormat.of(tokenizer), num_examples, "allowed")
    examples = examples.take(epoch_order(np.arange(len(examples)), SEED, 0)[:num_examples])
    settings = TrainingSettings(
        num_epochs=1, batch_size=BATCH_SIZE, learning_rate=1e-4, normalise="allowed", evaluation_fraction=0.0,
        evaluate_every=1, checkpoint_every=10**9, seed=SEED,
    )  # fmt: skip
    marks = [time.process_time()]
    train(
        model, examples, settings, checkpointer=NoCheckpoints(), choices=choices,
        report=lambda _: marks.append(time.process_time()),
    )  # fmt: skip
    sizes = sizes_for(model, None, None, device=torch.device("cpu"))
    steps = np.split(epoch_order(np.arange(num_examples), SEED, 0), num_steps + 1)
    tokens = [sum(batch.tokens.numel() for batch in passes(examples, step, **sizes._asdict())) for step in steps]
    step_s = median(np.diff(marks)[1 : num_steps + 1])
    num_tokens = sum(tokens[1:]) / num_steps
    return {
        "training_tokens_per_s": num_tokens / step_s,
        "training_step_s": step_s,
        "tokens_per_pair": num_tokens / BATCH_SIZE,
    }


if __name__ == "__main__":
    main()

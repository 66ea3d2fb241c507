"""At which rates does a core of this machine write and learn, while all of them do? `python -m benchmarks.rates [--quick]`

What `zerogr plan` counts with for a kind of processor, of the embedded model. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.core_rates import measure
from benchmarks.report import report
from zerogr.config.names import EMBEDDED_MODEL
from zerogr.llm.models import fastest_dtype

NOTES = """
- Of one core while all are at work: an engine of one thread on each, then training on all, over their number.
- `prompt_tokens_per_s`: prompts of the query stage with documents of 48 words, 16 in
  a batch, and one token of answer; `new_tokens_per_s`: two answers of 24 tokens each on top.
- `training_tokens_per_s`: tokens through the model, padding included, of steps of 32 pairs, the trie's choices alone in the
  loss, as by default; the optimiser's step is part of it.
- `load_s`: processor seconds from the start of a process until the model is loaded, all imports included.
"""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 prompts, one step of training")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a folder or a Hugging Face name")
    parser.add_argument("--out", type=Path, help="also write the figures to this Markdown file")
    arguments = parser.parse_args()
    sizes = {"num_prompts": 4, "num_steps": 1} if arguments.quick else {}
    found = asdict(measure(arguments.model, **sizes))
    circumstances = {"model": arguments.model, "dtype": str(fastest_dtype("cpu")).removeprefix("torch.")}
    rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
    report("What a core writes and learns", {**circumstances, **rounded}, arguments.out, NOTES)


if __name__ == "__main__":
    main()

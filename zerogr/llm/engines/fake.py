"""The engine without a model: texts that are a function of prompt and seed alone, for tests and dry runs.

A text is four to eight words, most of them drawn from the prompt's own words, the rest made up from the seed. It looks
enough like an answer to walk through normalisation, repair and filters. About 100,000 samples per second; no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from zerogr.llm.engines.engine import Generation, Prompt, Sampling
from zerogr.llm.engines.rendering import cut_at_stop

FAIL_MARKER = "<<fail>>"
"""A prompt with this text gets an error instead of an answer."""

_SYLLABLES = ("ba", "den", "fo", "gir", "hul", "ka", "lem", "mo", "nat", "pis", "ro", "sul", "tev", "vi", "wan", "zor")


class FakeEngine:
    """The `Engine` protocol without a language model."""

    name = "fake"

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Returns one `Generation` per prompt; `FAIL_MARKER` in the user turn makes it an error."""
        return [_answer(prompt, sampling) for prompt in prompts]


def _answer(prompt: Prompt, sampling: Sampling) -> Generation:
    if FAIL_MARKER in prompt.user:
        return Generation(texts=[], error=f"ValueError: the prompt contains {FAIL_MARKER}")
    all_words = re.findall(r"\w+", prompt.user)
    words = all_words[: sampling.max_prompt_tokens]  # here a word counts as a token
    digest = hashlib.sha256(f"{prompt.user}\0{prompt.prefill}".encode(errors="surrogatepass")).digest()
    prompt_key = int.from_bytes(digest[:8], "little")
    texts = []
    for seed in prompt.seeds:
        # At temperature 0 a language model ignores its seed; so do we.
        key = prompt_key ^ (seed if sampling.temperature > 0 else 0)
        texts.append(_text(words, np.random.Generator(np.random.Philox(key=key)), sampling.max_tokens))
    return Generation(
        texts=[cut_at_stop(text, sampling.stop) for text in texts],
        num_prompt_tokens=len(words),
        num_output_tokens=sum(len(text.split()) for text in texts),
    )


def _text(words: list[str], rng: np.random.Generator, max_words: int) -> str:
    def made_up() -> str:
        return "".join(_SYLLABLES[i] for i in rng.integers(len(_SYLLABLES), size=2))

    count = min(int(rng.integers(4, 9)), max_words)
    return " ".join(
        words[rng.integers(len(words))] if words and rng.random() < 0.8 else made_up() for _ in range(count)
    )

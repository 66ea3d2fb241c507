"""The engine without a model: texts that are a function of prompt and seed alone, for tests and dry runs.

A text is four to eight words, most of them drawn from the prompt's own words, the rest made up from the seed. It looks
enough like an answer to walk through normalisation, repair and filters. About 100,000 samples per second; no torch.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence

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
    asked = f"{prompt.user}\0{prompt.prefill}".encode(errors="surrogatepass")
    prompt_key = int.from_bytes(hashlib.blake2b(asked, digest_size=8).digest(), "little")
    # At temperature 0 a language model ignores its seed; so do we.
    seeds = prompt.seeds if sampling.temperature > 0 else [0] * len(prompt.seeds)
    texts = [_text(words, prompt_key ^ seed, sampling.max_tokens) for seed in seeds]
    return Generation(
        texts=[cut_at_stop(text, sampling.stop) for text in texts],
        num_prompt_tokens=len(words),
        num_output_tokens=sum(len(text.split()) for text in texts),
    )


def _text(words: list[str], key: int, max_words: int) -> str:
    # Drawn from a hash: making a generator of random numbers for each text takes longer than all the rest.
    length, *drawn = struct.unpack("<25H14x", hashlib.blake2b(key.to_bytes(16, "little", signed=True)).digest())
    text = []
    for at in range(0, 3 * min(4 + length % 5, max_words), 3):
        is_own, one, other = drawn[at : at + 3]
        if words and is_own % 5:
            text.append(words[one % len(words)])
        else:
            text.append(_SYLLABLES[one % len(_SYLLABLES)] + _SYLLABLES[other % len(_SYLLABLES)])
    return " ".join(text)

"""Engines: a batch of prompts in, n sampled texts per prompt out.

Three engines stand behind one protocol: `transformers` (any machine), `vllm` (GPUs; CPU builds too) and `fake`
(a deterministic function of prompt and seed, for tests of everything around a language model).
An engine never raises for one bad prompt: that `Generation` carries an `error` and no texts. It raises when it is
broken itself, `EngineDied` where nothing but a fresh engine can help, so that its worker ends and the work is done again
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request: a user turn, the first words of the answer, and a seed per sample."""

    user: str
    """The user turn, plain text; the engine puts it into the model's chat template."""
    prefill: str = ""
    """What the assistant's turn already says; the model continues from here. Not part of the returned texts."""
    seeds: tuple[int, ...]
    """One 63-bit seed per sample; their number is n. All samples share one prefill of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; the same for every prompt of a call."""

    max_tokens: int
    """Most tokens per sample."""
    temperature: float = 1.0
    """0 = argmax."""
    top_p: float = 1.0
    """Nucleus mass, in (0, 1]."""
    stop: tuple[str, ...] = ()
    """A sample ends before the first of these strings; the string itself is not returned."""
    max_prompt_tokens: int = 1024
    """Longer prompts lose the end of the user turn, never fail."""


@dataclass(slots=True, kw_only=True)
class Generation:
    """The samples of one prompt."""

    texts: list[str]
    """n texts in the order of the seeds; empty if `error` is set."""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    """Summed over the samples."""
    error: str = ""
    """Why this prompt got no answer; empty if it did."""


class EngineDied(RuntimeError):
    """The engine can answer no more, and only a new process can. Whoever holds it should end."""


class Engine(Protocol):
    """What every engine can do. `name` is the engine's own, resolved name."""

    name: str

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Returns one `Generation` per prompt, in the order of the prompts."""
        ...

"""From a `Prompt` to token ids: chat template around the user turn, prefill behind it, user turn cut to fit.

The template's text is taken once from the tokenizer, around a marker in the user's place. Header, user turn and footer
are then encoded one by one: cutting is a slice of the user's tokens, and special tokens written inside a document
("<|im_end|>") stay ordinary text and cannot end the user's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zerogr.errors import UserError
from zerogr.llm.engines.engine import Generation, Prompt, Sampling
from zerogr.llm.markers import as_data, undeclared_markers

_MARKER = "\N{OBJECT REPLACEMENT CHARACTER}user turn\N{OBJECT REPLACEMENT CHARACTER}"


class ChatRenderer:
    """Renders prompts for one tokenizer; one without a chat template gets user turn, newline, prefill."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        header, footer = "", "\n"
        if tokenizer.chat_template:
            # Templates that print today's date or open a chain of thought are told not to: the same input must give the
            # same tokens tomorrow, and few tokens are asked for. Other templates ignore the two variables.
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": _MARKER}],
                tokenize=False,
                add_generation_prompt=True,
                date_string="26 Jul 2024",
                enable_thinking=False,
            )
            header, found, footer = text.partition(_MARKER)
            if not found:
                raise ValueError(
                    f"the chat template of {tokenizer.name_or_path!r} changes the user turn; it cannot be rendered"
                )
        self._markers = undeclared_markers(tokenizer, (header, footer))
        self._header = self._encode(header)
        self._footer = self._encode(footer)
        if not tokenizer.chat_template and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id:
            self._header = [tokenizer.bos_token_id]

    def render_all(
        self, prompts: Sequence[Prompt], max_prompt_tokens: int
    ) -> tuple[list[Generation], dict[int, list[int]]]:
        """Returns (an empty `Generation` per prompt, token ids by position for each prompt that could be rendered).

        A prompt that cannot be rendered has its `error` set and no token ids.
        """
        generations = [Generation(texts=[]) for _ in prompts]
        token_ids = {}
        for i, prompt in enumerate(prompts):
            try:
                token_ids[i] = self.render(prompt, max_prompt_tokens)
            # What tokenizers raise for text they cannot take: a lone surrogate is a TypeError or a UnicodeError.
            except (ValueError, TypeError) as error:
                generations[i].error = f"{type(error).__name__}: {error}"
        return generations, token_ids

    def render(self, prompt: Prompt, max_prompt_tokens: int) -> list[int]:
        """Returns at most `max_prompt_tokens` token ids; what is too much is taken from the end of the user turn.

        Raises:
            ValueError: The template and the prefill alone are longer than `max_prompt_tokens`.
        """
        footer = self._footer + self._encode(prompt.prefill)
        room = max_prompt_tokens - len(self._header) - len(footer)
        if room < 0:
            raise ValueError(
                f"max_prompt_tokens is {max_prompt_tokens}, but the chat template and the prefill alone take "
                f"{max_prompt_tokens - room} tokens"
            )
        return (
            self._header + self._encode(as_data(prompt.user, self._markers), split_special_tokens=True)[:room] + footer
        )

    def _encode(self, text: str, split_special_tokens: bool = False) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False
        )["input_ids"]
        return ids


def max_prompt_tokens_for(sampling: Sampling, context_tokens: int | None) -> int:
    """Returns how long a prompt may be: `sampling.max_prompt_tokens`, or less if the answer must fit into the context.

    Raises:
        UserError: The answer alone fills the context.
    """
    if context_tokens is None:
        return sampling.max_prompt_tokens
    if sampling.max_tokens >= context_tokens:
        raise UserError(
            f"max_tokens is {sampling.max_tokens}, but the model's whole context is {context_tokens} tokens; lower it"
        )
    return min(sampling.max_prompt_tokens, context_tokens - sampling.max_tokens)


def end_token_ids(tokenizer: Any, generation_config: Any) -> set[int]:
    """Returns every token that ends an answer: those of the generation settings and the tokenizer's own."""
    ends = generation_config.eos_token_id if generation_config is not None else None
    ids = set(ends) if isinstance(ends, list | tuple) else {ends}
    return {token for token in ids | {tokenizer.eos_token_id} if token is not None}


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """Returns `text` up to the first of the `stop` strings, without an unfinished character at its end.

    A byte-level token may be part of a character; a sample that ends there decodes to U+FFFD.
    """
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))].rstrip("\ufffd")

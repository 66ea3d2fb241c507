"""How large a language model is: what it costs to take a token through it, and to keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from zerogr.config.names import EMBEDDED_MODEL
from zerogr.errors import UserError


class Shape(NamedTuple):
    """A decoder of the Llama family, by the figures of its config.json."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_heads: int
    vocabulary: int
    head_size: int
    is_tied: bool = True
    """Whether the output head is the table of embeddings."""

    @property
    def body(self) -> int:
        """Parameters that every token goes through: the layers, without embeddings, head and norms."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.key_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All parameters but the norms."""
        return self.body + self.hidden * self.vocabulary * (1 if self.is_tied else 2)


SHAPES = {
    EMBEDDED_MODEL: Shape(576, 30, 1536, 9, 3, 49_152, 64),
    "meta-llama/Llama-3.2-1B-Instruct": Shape(2048, 16, 8192, 32, 8, 128_256, 64),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(1536, 28, 8960, 12, 2, 151_936, 128),
    "meta-llama/Llama-3.2-3B-Instruct": Shape(3072, 28, 8192, 24, 8, 128_256, 128),
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 28, 18_944, 28, 4, 152_064, 128, False),
}
"""By the name on the Hugging Face hub, as published in its config.json."""
SIZES = dict(zip(("135M", "1B", "1.5B", "3B", "7B"), SHAPES, strict=True))
"""What `--model` takes -> whose shape is meant."""


def shape_of(model: str, flag: str) -> Shape:
    """Returns the shape of a size such as 3B, of a model that is known by its name, or of the config.json of a folder.

    Raises:
        UserError: The model's shape is not known, and is not asked for over the network; `flag` is what can be given instead.
    """
    name = SIZES.get(model, model)
    if name in SHAPES:
        return SHAPES[name]
    try:
        found = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
        heads = found["num_attention_heads"]
        return Shape(
            found["hidden_size"],
            found["num_hidden_layers"],
            found["intermediate_size"],
            heads,
            found.get("num_key_value_heads") or heads,
            found["vocab_size"],
            found.get("head_dim") or found["hidden_size"] // heads,
            found.get("tie_word_embeddings", False),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"the size of the model '{model}' is not known; give a folder with its config.json, or {flag} with one of "
            f"{', '.join(SIZES)}"
        ) from None

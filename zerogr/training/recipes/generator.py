"""The two generators: pairs of prompt and completion, in the tokens in which an engine asks and is answered."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.llm.engines.engine import Prompt
from zerogr.llm.engines.rendering import ChatRenderer
from zerogr.teaching.pairs import Pair, pairs_for, pairs_inputs
from zerogr.training.examples import Examples
from zerogr.training.losses.cross_entropy import CrossEntropySettings
from zerogr.training.recipes.recipe import common_inputs, settings_of

logger = logging.getLogger(__name__)


class GeneratorRecipe:
    """Pairs of prompt and completion, in the tokens in which an engine asks and is answered."""

    num_layers: int | None = None
    new_tokens: list[str] = []

    def __init__(self, config: Config, stage: str) -> None:
        tuning = config.tuning
        self._config, self.index, self.stage = config, Index(tuning.out), stage
        self.base = tuning.model
        self.settings = settings_of(
            config,
            num_epochs=tuning.num_epochs,
            batch_size=tuning.batch_size,
            learning_rate=tuning.learning_rate,
            row_tokens=tuning.row_tokens,
            normalise="vocabulary",
            loss=CrossEntropySettings(),
        )

    def inputs(self) -> dict[str, Any]:
        """Returns what the generator is made from."""
        tuning = self._config.tuning
        keys = ("num_epochs", "batch_size", "learning_rate", "row_tokens", "max_prompt_tokens")
        common = common_inputs(self._config, "tuning", self.base)
        return {
            **{name: value for name, value in common.items() if name.removeprefix("training.") not in keys},
            **{f"tuning.{key}": getattr(tuning, key) for key in keys},
            **pairs_inputs(self._config, self.stage),
        }

    def examples(self, tokenizer: Any) -> Examples:
        """Returns the pairs as training examples."""
        renderer, tuning = ChatRenderer(tokenizer), self._config.tuning

        def tokens(pair: Pair) -> tuple[list[int], list[int]]:
            prompt = Prompt(user=pair.prompt, prefill=pair.prefill, seeds=())
            answer = " " * bool(pair.prefill) + pair.completion
            completion = tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            return renderer.render(prompt, tuning.max_prompt_tokens), [*completion, tokenizer.eos_token_id]

        pairs = list(pairs_for(self._config, self.stage))
        usable = [pair for pair in pairs if pair.completion.strip()]
        if len(usable) < len(pairs):
            logger.warning(
                "%d of %d pairs have an empty completion and are left out", len(pairs) - len(usable), len(pairs)
            )
        examples = Examples.of_pairs(tokens(pair) for pair in usable)
        if not len(examples):
            raise UserError(f"there is no pair to train the {self.stage} on; see tuning.teacher and tuning.tasks")
        return examples

    def close(self) -> None:
        """Does nothing: pairs are few, and held in memory."""

    def choices(self, tokenizer: Any) -> None:
        """There are none: a generator writes what it likes."""

    def write_settings(self, folder: Path) -> None:
        """Writes nothing: a generator is asked like any other model."""

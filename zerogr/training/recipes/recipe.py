"""A recipe: what the trainer is given and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.index.index import RUNS, Index
from zerogr.llm.codec import extend, extend_embeddings
from zerogr.llm.models import load_model, model_hash, resolve_model
from zerogr.store import storage
from zerogr.training.checkpoints import StorageCheckpointer, full_tensors, save_tensors
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples
from zerogr.training.learner import TrainingSettings
from zerogr.training.log import TrainingLog
from zerogr.training.loop import train

VERSION = 8


class Recipe(Protocol):
    """One kind of model to train."""

    stage: str
    """Its name in the manifest, and the folder of the trained model."""
    index: Index
    """Where the stage lives."""
    base: str
    """The model to begin with."""
    num_layers: int | None
    """Of its layers, the first so many; None = all."""
    settings: TrainingSettings

    @property
    def new_tokens(self) -> list[str]:
        """What is added to the base model's vocabulary, in order."""

    def inputs(self) -> dict[str, Any]:
        """Returns what the stage's fingerprint is made of."""

    def examples(self, tokenizer: Any) -> Examples:
        """Returns what is to be learnt. Raises UserError if there is nothing."""

    def close(self) -> None:
        """Frees what the examples took of the machine's disk; for the end of training."""

    def choices(self, tokenizer: Any) -> Choices | None:
        """Returns what the trie of all docids leaves open, if docids are learnt. Raises UserError if it does not fit."""

    def write_settings(self, folder: Path) -> None:
        """Writes into the model's folder what its users need to know of its training."""


def load_base(recipe: Recipe, device: Any = "cpu") -> tuple[Any, Any]:
    """Returns the recipe's base model in fp32, with its new tokens, and fresh adapters if it trains some; and its tokenizer.

    Raises:
        UserError: Adapters are wanted, and peft is not installed or there are new tokens, which adapters do not train.
    """
    if recipe.new_tokens and recipe.settings.lora_rank:
        raise UserError(
            f"training.lora_rank is {recipe.settings.lora_rank}, and the docids need {len(recipe.new_tokens)} new tokens, "
            "whose embeddings adapters do not train; set it to 0"
        )
    model, tokenizer = load_model(
        resolve_model(recipe.base), device=device, dtype=torch.float32, num_layers=recipe.num_layers
    )
    if recipe.new_tokens:
        extend(tokenizer, recipe.new_tokens)
        extend_embeddings(model, tokenizer, recipe.new_tokens)
    return (with_adapters(model, recipe.settings) if recipe.settings.lora_rank else model), tokenizer


def with_adapters(model: Any, settings: TrainingSettings) -> Any:
    """Returns the model with low-rank adapters (LoRA) in all linear layers of its body; they alone are trainable."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError(
            "training.lora_rank needs peft; run `pip install 'zerogr[lora]'`, or set it to 0 to train all weights"
        ) from None
    rank = settings.lora_rank
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # every rank draws the same
        # Alpha = 2 r, the usual choice; "all-linear" leaves the output head alone.
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def run_recipe(
    recipe: Recipe,
    checkpoints: str,
    *,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    is_ending: Callable[[], bool] = lambda: False,
    device: torch.device | str = "cpu",
    rank: int = 0,
    num_ranks: int = 1,
) -> dict[str, Any]:
    """Trains and publishes a recipe's model; returns the stage's counts. Needs nothing but torch: with one rank, no Ray.

    Args:
        recipe: One of `zerogr.training.recipes.RECIPES`, made of a configuration.
        checkpoints: A URI; an interrupted run goes on from there.
        report: See `zerogr.training.loop.train`, as for what follows.
    """
    model, tokenizer = load_base(recipe, device)
    choices = recipe.choices(tokenizer)  # first: if the trie does not fit, nobody waits for the examples
    log = TrainingLog(recipe.index.path(RUNS, f"{recipe.stage}.jsonl")) if rank == 0 else None

    def note(line: dict[str, Any]) -> None:
        if log:
            log.add(line)
        report(line)

    counts = train(
        model,
        recipe.examples(tokenizer),
        recipe.settings,
        checkpointer=StorageCheckpointer(checkpoints, rank=rank, num_ranks=num_ranks),
        report=note,
        is_ending=is_ending,
        choices=choices,
        device=device,
        rank=rank,
        num_ranks=num_ranks,
    )
    if log:
        log.publish()
    publish_model(recipe, model, rank=rank)
    if num_ranks > 1:
        torch.distributed.barrier()  # should rank 0 have failed, the examples are still needed
    recipe.close()
    return counts


def publish_model(recipe: Recipe, model: nn.Module, *, rank: int = 0) -> None:
    """Publishes the trained model as a Hugging Face folder. With several ranks all must call it; rank 0 writes."""
    tensors = full_tensors(model, rank=rank)
    if rank:
        return
    merged, tokenizer = load_base(recipe)
    of_loss = {name: tensors.pop(name) for name in list(tensors) if name.startswith("of_loss.")}
    # Tied and frozen weights are missing there; a name that is foreign to the model would be a mistake of ours.
    loaded = merged.load_state_dict(tensors, strict=False)
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    if recipe.settings.lora_rank:
        merged = merged.merge_and_unload()
    dtype = torch.float32 if recipe.settings.precision == "fp32" else torch.bfloat16
    with storage.staging_folder(recipe.index.path(recipe.stage)) as folder:
        merged.to(dtype).save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        recipe.write_settings(folder)
        if kept_as := recipe.settings.loss.kept_as:
            save_tensors({name.removeprefix("of_loss."): tensor for name, tensor in of_loss.items()}, folder / kept_as)


def settings_of(config: Config, **changes: Any) -> TrainingSettings:
    fields = TrainingSettings.__dataclass_fields__
    chosen = {
        key: getattr(section, key)
        for section in (config.training, config.compute)
        for key in type(section).model_fields
        if key in fields
    }
    return TrainingSettings(**{**chosen, **changes}, seed=config.seed)


def common_inputs(config: Config, section: str, base: str) -> dict[str, Any]:
    """Returns what the model of every recipe is made from; `section` of the configuration names its base."""
    own = {"checkpoint_every", "checkpoint_minutes", "judged", "judged_split", "judged_weight", "judged_share"}
    own |= {"loss", "normalise"}
    training = config.training.model_dump(exclude=own)  # the retriever says the rest of its own
    return {
        "seed": config.seed,
        f"{section}.model": model_hash(resolve_model(base)),
        **{f"training.{key}": value for key, value in training.items()},
        "version": VERSION,
    }

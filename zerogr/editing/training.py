"""Training on: what `finetune` and `replay` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zerogr.config.base import MethodSettings

if TYPE_CHECKING:  # settings are read with the configuration, which must not wait for torch
    from zerogr.editing.method import Change, Setting
    from zerogr.training.examples import Examples


class TrainSettings(MethodSettings):
    """What methods have that train all weights."""

    num_epochs: int = Field(3, ge=1, le=1000, description="Passes over the pairs.")
    batch_size: int = Field(32, ge=1, description="Examples per optimiser step.")
    learning_rate: float = Field(1e-4, gt=0, lt=1, description="Of AdamW, constant after a short warm-up.")


def train_on(setting: Setting, examples: Examples, settings: TrainSettings, *, sharpness: float = 0.0) -> Change:
    """Trains the model on examples, resuming where an interrupted run stopped; returns how all weights have changed."""
    from zerogr.editing.method import Change
    from zerogr.training.checkpoints import StorageCheckpointer
    from zerogr.training.loop import train
    from zerogr.training.losses.cross_entropy import CrossEntropySettings
    from zerogr.training.recipes.recipe import settings_of

    model = setting.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    counts = train(
        model,
        examples,
        settings_of(
            setting.config,
            num_epochs=settings.num_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            schedule="constant",
            lora_rank=0,
            evaluation_fraction=0.0,
            loss=CrossEntropySettings(),  # new documents have no negatives
            sharpness=sharpness,
        ),
        checkpointer=StorageCheckpointer(setting.checkpoints),
        choices=setting.choices,
        device=model.device,
    )
    deltas = {name: (parameter.detach() - before[name]).cpu() for name, parameter in model.named_parameters()}
    return Change(deltas=deltas, report={"steps": counts["steps"], "loss": counts["loss"]})

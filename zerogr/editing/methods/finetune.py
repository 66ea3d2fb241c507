"""Fine-tuning: the retriever is trained on the new documents' queries alone. It forgets old ones; here for comparison."""

from __future__ import annotations

from pydantic import Field

from zerogr.editing.method import Change, New, Setting
from zerogr.editing.training import TrainSettings, train_on


class FinetuneSettings(TrainSettings):
    """Of the method finetune."""

    name: str = Field("finetune", description="Trains all weights on the new documents alone.")


class Finetune:
    """See the module."""

    Settings = FinetuneSettings

    def __init__(self, settings: FinetuneSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns how all weights have changed."""
        return train_on(setting, new.examples, self._settings)

"""DOME: values by hybrid labels, then least squares at the critical layers, the nearer to the last the larger their share.

Source: arXiv 2603.02773. Critical layers are those whose MLP, replaced by its mean, costs most (`zerogr.editing.statistics`);
the paper finds 14 to 18 of 24. It leaves open the optimiser of the values and λ of the least squares: MEMIT's is taken for the
first, and for λ the number of old keys, so that an old key counts what a new one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from zerogr.editing.edits import LayeredSettings, edit, moment_of, nearness
from zerogr.editing.method import Change, New, Setting

if TYPE_CHECKING:
    import torch

    from zerogr.editing.values import Search


class DomeSettings(LayeredSettings):
    """Of the method dome."""

    name: str = Field("dome", description="MEMIT with hybrid labels and shares by nearness, for docids (DOME, 2026).")
    num_steps: int = Field(50, ge=1, le=1000, description="Steps of Adam that look for a value.")
    labels: Literal["hybrid", "hard", "soft"] = Field(
        "hybrid", description="hard = the docid's token; hybrid = blended with what the model thought, less and less."
    )
    first_share: float = Field(0.3, ge=0, le=1, description="Share of the docid's token at the first step of hybrid.")
    preserve: float | None = Field(
        None, gt=0, description="Old keys that the statistics stand for; null = as many as they were made of."
    )

    def search(self) -> Search:
        """Returns the same with these labels."""
        return super().search()._replace(labels=self.labels, first_share=self.first_share)


class Dome:
    """See the module."""

    Settings = DomeSettings

    def __init__(self, settings: DomeSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns the changes of the layers' MLPs."""
        from zerogr.editing.closed_form import least_squares

        own = self._settings
        preserve = own.preserve or (setting.statistics.num_keys if setting.statistics else 1)

        def solve(layer: int, keys: torch.Tensor, lacking: torch.Tensor) -> torch.Tensor:
            return least_squares(keys, lacking, moment_of(setting, layer), preserve)

        return edit(setting, new, own, solve, share=nearness)

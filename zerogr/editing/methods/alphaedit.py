"""AlphaEdit: like MEMIT, but every change lies where old keys have next to nothing, and earlier changes are held as well.

Source: Fang et al. 2025, "AlphaEdit: Null-Space Constrained Knowledge Editing", and its released code. Its threshold of .02 is
one of the second moment's eigenvalues of an 8B model; here it is relative to their mean, since their scale is the model's own.
"""

from __future__ import annotations

from pydantic import Field

from zerogr.editing.edits import LayeredSettings, edit, moment_of
from zerogr.editing.method import Change, New, Setting


class AlphaeditSettings(LayeredSettings):
    """Of the method alphaedit."""

    name: str = Field("alphaedit", description="Changes in the null space of the old keys (Fang et al. 2025).")
    threshold: float = Field(0.02, gt=0, description="Of the null space, as a share of the mean eigenvalue.")
    ridge: float = Field(10.0, gt=0, description="What is added to the diagonal.")


class Alphaedit:
    """See the module."""

    Settings = AlphaeditSettings

    def __init__(self, settings: AlphaeditSettings) -> None:
        self._settings = settings

    def update(self, setting: Setting, new: New) -> Change:
        """Returns the changes of the layers' MLPs."""
        import torch

        from zerogr.editing.closed_form import null_space

        own, statistics = self._settings, setting.statistics
        assert statistics is not None

        def solve(layer: int, keys: torch.Tensor, lacking: torch.Tensor) -> torch.Tensor:
            moment = moment_of(setting, layer)
            earlier = statistics.added.get(layer, torch.zeros_like(moment)).to(moment.device)
            return null_space(keys, lacking, moment, earlier, threshold=own.threshold, ridge=own.ridge)

        return edit(setting, new, own, solve)

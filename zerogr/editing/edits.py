"""Editing: values at one layer, then one change of weights in closed form at each of some layers, the lowest first.

What ROME, MEMIT, EMMET, AlphaEdit and DOME have in common; each is a file in `zerogr.editing.methods` that says how its values
are looked for, which layers it changes, what share of the residual each takes, and its closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from zerogr.config.base import MethodSettings
from zerogr.errors import UserError

if TYPE_CHECKING:  # settings are read with the configuration, which must not wait for torch
    import torch

    from zerogr.editing.method import Change, New, Setting
    from zerogr.editing.positions import Reader
    from zerogr.editing.values import Search
    from zerogr.training.normalisation import Normalisation
    from zerogr.training.packing import PackedBatch


class EditSettings(MethodSettings):
    """What all editing methods have."""

    needs_statistics = True

    num_steps: int = Field(25, ge=1, le=1000, description="Steps of Adam that look for a value.")
    learning_rate: float = Field(0.5, gt=0, description="Of them.")
    weight_decay: float = Field(1e-3, ge=0, description="Of what is added to the residual stream.")
    max_norm: float = Field(0.75, gt=0, description="Of it, as a share of the stream's own norm.")
    num_queries: int = Field(10, ge=1, description="Most pseudo-queries of a document that are edited in.")

    def depths(self) -> list[float]:
        """Returns the first and the last layer that are changed, as shares of the depth."""
        raise NotImplementedError

    def search(self) -> Search:
        """Returns how values are looked for."""
        from zerogr.editing.values import Search

        return Search("hard", self.num_steps, self.learning_rate, self.weight_decay, self.max_norm)


class OneLayerSettings(EditSettings):
    """What those have that change one layer."""

    layer: float = Field(0.75, ge=0, le=1, description="The layer, as a share of the depth.")

    def depths(self) -> list[float]:
        """Returns that layer."""
        return [self.layer, self.layer]


class LayeredSettings(EditSettings):
    """What those have that change several layers."""

    layers: list[float] = Field(
        default_factory=lambda: [0.583, 0.75],
        min_length=2,
        max_length=2,
        description="The first and the last layer that are changed, as shares of the depth: 14 and 18 of 24.",
    )

    def depths(self) -> list[float]:
        """Returns `layers`."""
        return self.layers

    @model_validator(mode="after")
    def _layers(self) -> LayeredSettings:
        first, last = self.layers
        if not 0 <= first <= last <= 1:
            raise ValueError(f"layers is {self.layers}; it must be two shares of the depth, the smaller one first")
        return self


def edit(
    setting: Setting,
    new: New,
    settings: EditSettings,
    solve: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    share: Callable[[int, Sequence[int]], float] | None = None,
    grouped: bool = False,
) -> Change:
    """Returns what an editing method changes; the model has it afterwards.

    Cost: one pass of the queries through all layers, the search for values in the layers above the last edited one, and for
    each edited layer one pass from there to the last. What goes into the first edited layer is held for all tokens.

    Args:
        setting: The retriever.
        new: What is to be learnt.
        settings: Of the method.
        solve: The closed form: (layer, keys [n, F], residuals [n, D]) -> change [D, F], float64.
        share: (number of a layer among those that are changed, these) -> the share of what is still lacking that it makes up
            for; None = `remaining`.
        grouped: Whether keys and residuals of a docid's token are averaged over the document's queries.
    """
    import torch

    from zerogr.editing.method import Change
    from zerogr.editing.positions import Reader
    from zerogr.editing.statistics import layers_between
    from zerogr.training.normalisation import NORMALISATIONS

    normalisation = NORMALISATIONS[setting.config.training.normalise]
    reader = Reader(setting.model, setting.choices if normalisation.needs_choices else None)
    ids = first_queries(new, settings.num_queries)
    layers = layers_between(settings.depths(), len(reader.layers))
    behind, deltas, share = layers[-1], dict[str, torch.Tensor](), share or remaining
    batches = reader.batches(new.examples, ids)
    values, losses, hidden = _values(reader, batches, layers, settings.search(), normalisation)
    groups = groups_of(new, ids, batches) if grouped else None
    taught = dict[int, torch.Tensor]()
    for number, layer in enumerate(layers):
        # Nothing below this layer changes any more, so it is not computed again.
        read = [reader.go_on(batch, each, layer, behind) for batch, each in zip(batches, hidden, strict=True)]
        taught[layer] = keys = torch.cat([each for each, _ in read])
        now = [state.flatten(0, 1)[batch.predicting] for batch, (_, state) in zip(batches, read, strict=True)]
        residuals = (values - torch.cat(now)) * share(number, layers)
        if groups is not None:
            keys, residuals = means_of(keys, groups), means_of(residuals, groups)
        delta = _checked(solve(layer, keys, residuals), layer)
        with torch.no_grad():
            reader.weight(layer).add_(delta.to(reader.weight(layer)))
        deltas[f"{_prefix(setting.model)}.{layer}.mlp.down_proj.weight"] = delta.float().cpu()
        if number + 1 < len(layers):
            until = layers[number + 1] - 1
            hidden = [reader.go_on(batch, each, layer, until)[1] for batch, each in zip(batches, hidden, strict=True)]
    assert setting.statistics is not None
    keys_of = {layer: each.cpu() for layer, each in taught.items()}
    report = {"edited": len(values), "value_loss": round(float(losses.mean()), 4), "layers": list(layers)}
    return Change(deltas=deltas, statistics=setting.statistics.learnt(keys_of), report=report)


def _values(
    reader: Reader, batches: Sequence[PackedBatch], layers: Sequence[int], search: Search, normalisation: Normalisation
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Returns values [P, D] and their losses [P], and for each batch what goes into the first layer, [R, L, D]."""
    import torch

    from zerogr.editing import values
    from zerogr.progress import Progress

    found, hidden = [], []
    progress = Progress("values", total=len(batches), unit="passes")
    for batch in batches:
        seen = reader.read(batch, [], layers[-1], before=layers[0])
        hidden.append(seen.before)
        found.append(values.find_values(reader, batch, seen, layers[-1], search, normalisation))
        progress.advance(1)
    progress.close()
    return torch.cat([value for value, _ in found]), torch.cat([loss for _, loss in found]), hidden


def _checked(delta: torch.Tensor, layer: int) -> torch.Tensor:
    """Returns a change. Raises UserError if it is not finite."""
    if not bool(delta.isfinite().all()):
        raise UserError(
            f"the edit of layer {layer} is not finite; the statistics may be of another model: run `zerogr statistics` "
            "with --rebuild statistics"
        )
    return delta


def first_queries(new: New, most: int) -> Any:
    """Returns the examples (int64) of at most so many pseudo-queries of each document."""
    import numpy as np

    counts: dict[str, int] = {}
    chosen = []
    for number, known in enumerate(new.known):
        counts[known.doc_id] = counts.get(known.doc_id, 0) + 1
        if counts[known.doc_id] <= most:
            chosen.append(number)
    return np.array(chosen, dtype=np.int64)


def moment_of(setting: Setting, layer: int) -> torch.Tensor:
    """Returns the second moment of a layer's old keys. Raises UserError if the statistics lack it."""
    assert setting.statistics is not None
    if layer not in setting.statistics.moments:
        known = ", ".join(map(str, sorted(setting.statistics.moments)))
        raise UserError(
            f"the index has no statistics of layer {layer}, only of {known}; run `zerogr statistics` with --rebuild "
            "statistics and another update.layers"
        )
    return setting.statistics.moments[layer].to(setting.model.device)


def remaining(number: int, layers: Sequence[int]) -> float:
    """MEMIT's share: what is lacking is spread evenly over the layers that are left."""
    return 1 / (len(layers) - number)


def _prefix(model: Any) -> str:
    """Returns the name of the list of layers among the model's parameters."""
    layers = model.get_decoder().layers
    return next(name for name, module in model.named_modules() if module is layers)


def groups_of(new: New, ids: Any, batches: Sequence[PackedBatch]) -> torch.Tensor:
    """Returns for every predicting position, of all batches, the number (int64 [P]) of its document and token."""
    import torch

    from zerogr.editing.positions import PASS_TOKENS, ROW_TOKENS
    from zerogr.training.packing import members_of

    numbers: dict[tuple[str, int], int] = {}
    docid_of = {number: known.docid for number, known in enumerate(new.known)}
    order = members_of(new.examples, ids, ROW_TOKENS, PASS_TOKENS)
    groups = []
    for batch, examples in zip(batches, order, strict=True):
        example_of_target = batch.example[batch.document[batch.answer]]
        depth: dict[int, int] = {}
        of_position: dict[int, int] = {}
        for target, position in enumerate(batch.predicted_by.tolist()):
            answer = int(batch.answer[target])
            place = depth[answer] = depth.get(answer, -1) + 1
            key = (docid_of[examples[int(example_of_target[target])]], place)
            of_position.setdefault(position, numbers.setdefault(key, len(numbers)))
        groups += [of_position[position] for position in range(len(batch.predicting))]
    return torch.tensor(groups)


def means_of(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Returns the mean of each group's rows."""
    import torch

    number = int(groups.max()) + 1
    groups = groups.to(values.device)
    sums = values.new_zeros(number, values.shape[1]).index_add_(0, groups, values)
    return sums / torch.bincount(groups, minlength=number)[:, None]


def nearness(number: int, layers: Sequence[int]) -> float:
    """DOME's share: in proportion to 1 / distance to the layer behind the last, among the layers that are left.

    The paper says "proportional to 1/distance"; that the shares of what is left add up to 1 is our choice.
    """
    weights = [1 / (len(layers) - each) for each in range(number, len(layers))]
    return weights[0] / math.fsum(weights)

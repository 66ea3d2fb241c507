"""What a method of updating is: it teaches a retriever new documents, and says which of its weights that changed.

A method is chosen by `update.method`. It is given the model, the new documents' pseudo-queries as training examples, and what
is known of the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zerogr.config.base import MethodSettings
from zerogr.config.owned import METHOD
from zerogr.plugins import load_class

if TYPE_CHECKING:  # this file is read with the configuration, which must not wait for torch
    import torch

    from zerogr.config.tree import Config
    from zerogr.decoding.terms import Terms
    from zerogr.editing.sample import Known, Sample
    from zerogr.editing.states import States
    from zerogr.editing.statistics import Statistics
    from zerogr.llm.chat import ChatFormat
    from zerogr.training.choices import Choices
    from zerogr.training.examples import Examples
    from zerogr.trie.trie import DocidTrie


@dataclass(kw_only=True)
class Setting:
    """The retriever that is to learn, and what is known of it."""

    model: Any
    """A causal LM in fp32; the method may change it."""
    chat: ChatFormat
    trie: DocidTrie
    """Of old and new docids together, removed ones included; row i is that of the version that is being made."""
    choices: Choices
    """What that trie leaves open."""
    terms: Terms
    """Of single choices, so far."""
    states: States
    """Of old queries, as far as an update before has kept them."""
    statistics: Statistics | None
    """Where the method needs them."""
    config: Config
    tokenised: Callable[[Sequence[Known]], Examples]
    """Makes training examples."""
    checkpoints: str
    """A URI for what is to survive a fault."""


@dataclass(kw_only=True)
class New:
    """What is to be learnt, and what is not to be forgotten."""

    known: Sequence[Known]
    """The pseudo-queries of the new documents."""
    examples: Examples
    """The same, tokenised."""
    old: Sample
    """Pseudo-queries of old documents."""


@dataclass(kw_only=True)
class Change:
    """What a method has changed."""

    deltas: dict[str, torch.Tensor] = field(default_factory=dict)
    """What is to be added to weights (fp32), by name."""
    terms: Terms | None = None
    """Of single choices, all that there are now; None = as before."""
    states: States | None = None
    """Of old queries, for the next update; None where weights are changed."""
    statistics: Statistics | None = None
    """With the new documents' queries; None = as before."""
    report: dict[str, Any] = field(default_factory=dict)
    """For people: losses, certificates."""


class Method(Protocol):
    """One way to learn new documents. The class names its settings and is made of them."""

    Settings: ClassVar[type[MethodSettings]]

    def __init__(self, settings: Any) -> None: ...

    def update(self, setting: Setting, new: New) -> Change:
        """Returns what changes."""


def load_method(settings: MethodSettings) -> Method:
    """Returns the method that these settings choose."""
    method: Method = load_class(settings.name, METHOD.package)(settings)
    return method

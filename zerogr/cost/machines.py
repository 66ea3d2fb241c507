"""The machines of a plan: what a node is, and how long it takes for what a language model does."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from zerogr.config.names import EMBEDDED_MODEL
from zerogr.cost.rates import CORES, ELEMENTWISE_S, GENERATION_HOST_S, LAYER_S, MOST_ENGINES, PRODUCTS, Basis, Core
from zerogr.cost.shapes import SHAPES, Shape
from zerogr.cost.work import Learning, Writing
from zerogr.errors import UserError
from zerogr.training.peaks import PEAK_FLOPS

MEASURED_GPU = "h200"
_REFERENCE = SHAPES[EMBEDDED_MODEL]
_PEAKS = {name.removeprefix("NVIDIA ").lower().replace(" ", "-"): peak for name, peak in PEAK_FLOPS.items()}
GPUS = tuple(_PEAKS)
"""What `--gpu` takes, besides none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """How long something takes, and how that is known."""

    value: float
    """Of one GPU, or of one core."""
    basis: Basis
    """measured | fitted | extrapolated"""
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """Nodes that are all alike: one GPU and 16 cores each, as measured, or two cores, or this machine's."""

    gpu: str | None
    """One of `GPUS`; None = none."""
    core: Core
    nodes: int

    @classmethod
    def of(cls, gpu: str, cpu: str, nodes: int) -> Machines:
        """Returns the machines that the flags name.

        Raises:
            UserError: There are no rates of such a kind.
        """
        for flag, kind, known in (("--gpu", gpu, ("none", *GPUS)), ("--cpu", cpu, tuple(CORES))):
            if kind not in known:
                raise UserError(f"{flag} is {kind}; there are rates for {', '.join(known)}")
        return cls(gpu=None if gpu == "none" else gpu, core=CORES[cpu], nodes=nodes)

    @property
    def cores(self) -> int:
        """Of a node."""
        return 16 if self.gpu else self.core.cores

    @property
    def engines(self) -> int:
        """Models that write at a time, one per GPU or per core."""
        return self.nodes * (1 if self.gpu else min(self.cores, MOST_ENGINES))

    def writing_s(self, writing: Writing, shape: Shape) -> Seconds:
        """Returns how long one engine is at a generating stage's work."""
        tokens = writing.prompt_tokens + writing.new_tokens
        is_reference = shape.body == _REFERENCE.body
        if self.gpu:
            products = 2 * shape.body * tokens / (PRODUCTS.value * self._of_h200)
            return Seconds(
                value=writing.new_tokens * GENERATION_HOST_S.value + products,
                basis="measured" if is_reference and self.gpu == MEASURED_GPU else "extrapolated",
                formula="new tokens x host s + 2 x body x tokens / achieved FLOP/s; transformers engine, vLLM was not measured",
            )
        read = self.core.prompt
        seconds = (writing.prompt_tokens / read.value if read else 0.0) + writing.new_tokens / self.core.new.value
        return Seconds(
            value=seconds * shape.body / _REFERENCE.body,
            basis=self.core.new.basis if is_reference else "extrapolated",
            formula="prompt tokens / rate + new tokens / rate, x body parameters over those of the 135M model",
        )

    def training_s(self, learning: Learning, batch_size: int, shape: Shape, *, is_lora: bool) -> Seconds:
        """Returns how long training takes on all nodes together, in seconds of wall time.

        On a GPU a step is the host's time per layer, and per token the elementwise kernels and the products, fitted to four
        measured steps. Nodes share a step's pairs; what they say to each other costs nothing here.
        """
        if not self.gpu:
            tokens = learning.pairs * learning.model_tokens
            rate = self.core.training.value * self.cores * self.nodes
            return Seconds(
                value=tokens / rate * shape.body / _REFERENCE.body,
                basis=self.core.training.basis if shape.body == _REFERENCE.body else "extrapolated",
                formula="tokens through the model / rate, x body parameters over those of the 135M model",
            )
        tokens = ceil(batch_size / self.nodes) * learning.pair_tokens
        products = (4 if is_lora else 6) * shape.body / PRODUCTS.value
        per_token = (shape.layers * shape.hidden * ELEMENTWISE_S.value + products) / self._of_h200
        return Seconds(
            value=learning.steps * (shape.layers * LAYER_S.value + tokens * per_token),
            basis="fitted"
            if (self.gpu, self.nodes) == (MEASURED_GPU, 1) and shape in _MEASURED_SHAPES
            else "extrapolated",
            formula="steps x (layers x host s + tokens x (layers x hidden x elementwise s + 6 x body / achieved FLOP/s))",
        )

    @property
    def _of_h200(self) -> float:
        """The GPU's peak over the H200's."""
        return _PEAKS[self.gpu or MEASURED_GPU] / _PEAKS[MEASURED_GPU]


_MEASURED_SHAPES = (_REFERENCE, SHAPES["meta-llama/Llama-3.2-1B-Instruct"])

"""A plan: the stages of one index with their sum, their price, and everything that was assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from zerogr.config.names import EMBEDDED_MODEL
from zerogr.config.tree import Config
from zerogr.cost.estimate import Models, StageCost, estimate, search_s
from zerogr.cost.machines import MEASURED_GPU, Machines
from zerogr.cost.rates import RATES
from zerogr.cost.rehearsal import Rehearsal
from zerogr.cost.shapes import SHAPES, shape_of
from zerogr.cost.texts import BYTES_PER_TOKEN, Texts
from zerogr.cost.work import DOCID_TOKENS, KEPT, QUERY_TOKENS, TUNED_DOCID_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """In dollars, from the user. None = not said."""

    gpu_hour: float | None = None
    cpu_hour: float | None = None
    """Of one core."""

    def of(self, gpu_hours: float, cpu_hours: float) -> float | None:
        """Returns what so many hours cost; None where a price that counts is not known."""
        bill = [(gpu_hours, self.gpu_hour), (cpu_hours, self.cpu_hour)]
        if all(price is None for _, price in bill) or any(hours and price is None for hours, price in bill):
            return None
        return sum(hours * price for hours, price in bill if price is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Over stages that are known."""

    gpu_hours: float
    cpu_hours: float
    seconds: float
    disk_bytes: float
    dollars: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an index would cost."""

    model: str
    parameters: float
    num_documents: int
    stages: list[StageCost]
    total: Sums
    one_query_more: Sums
    """What `num_queries_per_document`, raised by one, adds."""
    search_s: float | None
    """Seconds per query; None = not known."""
    dollars: list[float | None]
    """Of every stage."""
    assumptions: list[str]

    def as_json(self) -> dict[str, Any]:
        """Returns the plan as one JSON object."""
        found = asdict(self)
        for stage, dollars in zip(found["stages"], found.pop("dollars"), strict=True):
            stage["dollars"] = dollars
        return found


def make_plan(
    config: Config,
    texts: Texts,
    machines: Machines,
    *,
    model: str | None = None,
    generator: str | None = None,
    prices: Prices,
    rehearsal: Rehearsal | None = None,
) -> Plan:
    """Returns the plan of an index.

    Args:
        config: Of the index.
        texts: What its documents are like.
        machines: What it is built on.
        model: A size such as 3B in the place of `retriever.model`; None = the configured model.
        generator: The same for the models that write docids and pseudo-queries.
        prices: Of the machines.
        rehearsal: What stages took on one of them; None = rates alone.

    Raises:
        UserError: The size of a model is not known.
    """
    models = models_of(config, model, generator)
    stages = _costs(config, texts, machines, models, rehearsal)
    total = _sum(stages, prices)
    return Plan(
        model=model or config.retriever.model,
        parameters=models.retriever.parameters,
        num_documents=texts.num_documents,
        stages=stages,
        total=total,
        one_query_more=_one_query_more(config, texts, machines, models, total, generator, prices, rehearsal),
        search_s=search_s(machines, models.retriever, SHAPES[EMBEDDED_MODEL]),
        dollars=[prices.of(stage.gpu_hours or 0.0, stage.cpu_hours or 0.0) for stage in stages],
        assumptions=list(_assumptions(config, texts, machines, prices)),
    )


def models_of(config: Config, model: str | None = None, generator: str | None = None) -> Models:
    """Returns the shapes of an index's models; arguments and errors as for `make_plan`."""
    retriever = shape_of(model or config.retriever.model, "--model")
    layers = min(config.retriever.num_layers or retriever.layers, retriever.layers)
    return Models(
        docids=shape_of(generator or str(getattr(config.docids, "model", None)), "--generator")
        if config.docids.needs_engine
        else None,
        queries=shape_of(generator or config.queries.model, "--generator")
        if config.queries.num_queries_per_document
        else None,
        retriever=retriever._replace(layers=layers),
    )


def _costs(
    config: Config, texts: Texts, machines: Machines, models: Models, rehearsal: Rehearsal | None
) -> list[StageCost]:
    costs = estimate(config, texts, machines, models)
    if rehearsal is None:
        return costs
    starts = estimate(config, replace(texts, num_documents=0), machines, models)
    return rehearsal.applied(costs, starts, texts.num_documents)


def _sum(stages: list[StageCost], prices: Prices) -> Sums:
    gpu_hours, cpu_hours, seconds, disk = (
        sum(getattr(stage, name) or 0.0 for stage in stages)
        for name in ("gpu_hours", "cpu_hours", "seconds", "disk_bytes")
    )
    return Sums(
        gpu_hours=gpu_hours,
        cpu_hours=cpu_hours,
        seconds=seconds,
        disk_bytes=disk,
        dollars=prices.of(gpu_hours, cpu_hours),
    )


def _one_query_more(
    config: Config,
    texts: Texts,
    machines: Machines,
    models: Models,
    total: Sums,
    generator: str | None,
    prices: Prices,
    rehearsal: Rehearsal | None,
) -> Sums:
    number = config.queries.num_queries_per_document
    queries = config.queries.model_copy(update={"num_queries_per_document": number + 1})
    asked = models.queries or shape_of(generator or config.queries.model, "--generator")
    more = _sum(
        _costs(
            config.model_copy(update={"queries": queries}),
            texts,
            machines,
            Models(docids=models.docids, queries=asked, retriever=models.retriever),
            rehearsal,
        ),
        prices,
    )
    gpu_hours, cpu_hours = more.gpu_hours - total.gpu_hours, more.cpu_hours - total.cpu_hours
    return Sums(
        gpu_hours=gpu_hours,
        cpu_hours=cpu_hours,
        seconds=more.seconds - total.seconds,
        disk_bytes=more.disk_bytes - total.disk_bytes,
        dollars=prices.of(gpu_hours, cpu_hours),
    )


def _assumptions(config: Config, texts: Texts, machines: Machines, prices: Prices) -> Iterator[str]:
    yield f"corpus: {texts.source}; {BYTES_PER_TOKEN} bytes per token (4.1 to 5.6 over five English corpora)"
    if config.queries.num_queries_per_document:
        kept = KEPT[config.queries.on_topic]
        yield f"of the pseudo-queries {kept:.0%} are kept, {QUERY_TOKENS} tokens each; .32 to .69 were, by corpus"
    if config.docids.needs_engine:
        yield f"a proposal of a docid has {DOCID_TOKENS} tokens, {TUNED_DOCID_TOKENS} with a prompt of rules, or max_tokens"
    if machines.gpu:
        yield "a node is one GPU and 16 cores; generation is that of the transformers engine: vLLM on a GPU was not measured"
        if machines.gpu != MEASURED_GPU:
            yield f"{machines.gpu}: not measured; all but the host's part scales with its peak in NVIDIA's data sheet"
    else:
        yield f"a node is {machines.core.hardware}, with nothing else to do"
    if machines.nodes > 1:
        yield f"{machines.nodes} nodes share the work without loss; what they say to each other was not measured"
    if config.training.judged:
        yield "judged queries are not counted"
    if config.training.loss.needs_negatives:
        yield "the documents that a loss compares are counted as tokens; finding them (stage negatives) was not measured"
    if prices.gpu_hour is None and prices.cpu_hour is None:
        yield "no price was given, and none is assumed: --dollars-per-gpu-hour, --dollars-per-cpu-hour"
    else:
        yield f"prices are yours: ${prices.gpu_hour or 0:g} a GPU-hour, ${prices.cpu_hour or 0:g} a core-hour"


def rates_as_json() -> dict[str, dict[str, Any]]:
    """Returns every rate that plans count with, by its name."""
    return {name: asdict(rate) for name, rate in RATES.items()}

"""Says what an index would cost, stage by stage, from measured rates. `zerogr plan CONFIG`"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from typing import Any

from jobs.command import run_module
from jobs.plan_tables import print_against, print_plans
from jobs.rehearsal import counts_for, rehearse
from zerogr.config.tree import Config
from zerogr.cost.against import Comparison, compare, recorded_documents
from zerogr.cost.estimate import estimate
from zerogr.cost.machines import MEASURED_GPU, Machines
from zerogr.cost.plan import Plan, Prices, make_plan, models_of, rates_as_json
from zerogr.cost.rehearsal import Rehearsal, rehearsal_of
from zerogr.cost.texts import DEFAULT_BYTES, Texts, assumed_texts, sampled_texts
from zerogr.errors import UserError
from zerogr.machine import num_cores

logger = logging.getLogger(__name__)


def command(options: argparse.Namespace) -> None:
    """Prints the plans, one per size of the retriever, for a person or as one JSON document."""
    config, machines = options.config, _machines(options)
    texts = _texts(options, config)
    prices = Prices(gpu_hour=options.dollars_per_gpu_hour, cpu_hour=options.dollars_per_cpu_hour)
    rehearsal = _rehearsal(config, texts, machines) if options.rehearse else None
    plans = [
        make_plan(config, texts, machines, model=model, generator=options.generator, prices=prices, rehearsal=rehearsal)
        for model in options.model or [None]
    ]
    compared = compare(plans[0].stages, options.against) if options.against else []
    if options.json:
        print(json.dumps(_document(plans, machines, compared), indent=2, ensure_ascii=False))
        return
    print_plans(plans, machines)
    if compared:
        print_against(options.against, compared)


def _machines(options: argparse.Namespace) -> Machines:
    compute = options.config.compute
    has_gpu = compute.num_gpus_per_engine > 0 or compute.num_gpus_per_trainer > 0
    gpu = options.gpu or (MEASURED_GPU if has_gpu else "none")
    nodes = options.nodes or (compute.most_training_workers if has_gpu else 1)
    machines = Machines.of(gpu, options.cpu, nodes)
    if not options.rehearse:
        return machines
    return replace(
        machines, core=replace(machines.core, cores=num_cores(), hardware=f"{num_cores()} cores of this machine")
    )


def _rehearsal(config: Config, texts: Texts, machines: Machines) -> Rehearsal:
    """Returns what two small indexes of this configuration take on this machine."""
    machine = replace(machines, nodes=1)
    counts = counts_for(texts.num_documents, machine.engines)
    models = models_of(config)
    planned = [estimate(config, replace(texts, num_documents=count), machine, models) for count in (0, *counts)]
    return rehearsal_of(counts, rehearse(config, counts, machine.engines), (planned[0], planned[1], planned[2]))


def _texts(options: argparse.Namespace, config: Config) -> Texts:
    count = options.documents or config.corpus.max_documents
    if options.against:
        count = recorded_documents(options.against)
    if options.document_bytes is None:
        try:
            return sampled_texts(config, count)
        except UserError as error:
            if count is None:
                raise
            logger.warning("%s; documents of %d bytes are assumed", error, DEFAULT_BYTES)
    elif count is None:
        options.parser.error("--document-bytes reads no corpus: give --documents as well")
    return assumed_texts(config, count, options.document_bytes or DEFAULT_BYTES)


def _document(plans: list[Plan], machines: Machines, compared: list[Comparison]) -> dict[str, Any]:
    return {
        "gpu": machines.gpu,
        "nodes": machines.nodes,
        "cores_per_node": machines.cores,
        "plans": [plan.as_json() for plan in plans],
        "against": [{**one._asdict(), "error": one.error, "is_within": one.is_within} for one in compared],
        "rates": rates_as_json(),
    }


if __name__ == "__main__":
    run_module("plan", command)

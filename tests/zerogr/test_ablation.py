"""Ablations: what a variant is compared with."""

from __future__ import annotations

from typing import Any

from zerogr.config.evaluation import DEFAULT_METRICS
from zerogr.config.file import validate_config
from zerogr.evaluation.ablation import results_of, variants
from zerogr.evaluation.metrics import METRICS
from zerogr.evaluation.report.ablation import ablation_report
from zerogr.index.index import StageRecord


def test_a_system_that_the_base_lacks_is_compared_with_its_first() -> None:
    """Only one of several losses teaches a score to re-rank by: the others' indexes have no such row."""

    def evaluated(*systems: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"systems": {name: dict.fromkeys(DEFAULT_METRICS, value) for name, value in systems}}] * 4

    config = validate_config(
        {"ablation": {"grids": [{"training.loss.name": ["ranknet"]}]}, "evaluation": {"dataset": "judged"}}
    )
    of_row = {"strategy": "beam", "num_queries": 4, "ms_per_query": 1.0, "seconds_to_index": 9.0} | dict.fromkeys(
        METRICS, 0.5
    )
    names = ["zerogr-beam", "bm25", "zerogr-beam+rerank=True"]
    records = {
        "docids": StageRecord("", {}),
        "retriever": StageRecord("", {}),
        "evaluation": StageRecord("", {}, {"rows_compared": [{"system": name, **of_row} for name in names]}),
    }
    of_base, first = evaluated(("zerogr-beam", 0.25), ("bm25", 0.75)), variants(config)
    reranked = evaluated(("zerogr-beam", 0.5), ("bm25", 0.75), ("zerogr-beam+rerank=True", 1.0))
    base = results_of(first[0], config, records, of_base, of_base)[:2]
    rows = results_of(first[1], config, records, reranked, of_base)
    assert [row["ndcg@10 - base"] for row in rows] == [0.25, 0.0, 0.75]
    assert "zerogr-beam+rerank=True" in ablation_report([*base, *rows], title="Ablation")[1]

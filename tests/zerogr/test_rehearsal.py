"""What two small indexes say of a large one, with runs whose start and pace are known."""

from __future__ import annotations

from typing import Any

import pytest

from zerogr.config.file import validate_config
from zerogr.cost.estimate import StageCost
from zerogr.cost.machines import Machines
from zerogr.cost.plan import Plan, Prices, make_plan, models_of
from zerogr.cost.rehearsal import Rehearsal, rehearsal_of
from zerogr.cost.texts import Texts, assumed_texts

CONFIG = validate_config({"queries": {"num_queries_per_document": 4, "num_spans_per_document": 8}})
LAPTOP = Machines.of("none", "avx2", 1)
FEW, MANY = 2, 24


def texts(num_documents: int) -> Texts:
    return assumed_texts(CONFIG, num_documents, 1000)


def plan(num_documents: int, rehearsal: Rehearsal | None = None, machines: Machines = LAPTOP, **how: Any) -> Plan:
    return make_plan(CONFIG, texts(num_documents), machines, prices=Prices(), rehearsal=rehearsal, **how)


def seconds(found: Plan) -> dict[str, float]:
    return {cost.stage: cost.seconds or 0.0 for cost in found.stages}


@pytest.fixture
def rehearsal() -> Rehearsal:
    """A machine that takes 50 s to start each stage, and then three times as long as the rates say."""
    costs = {count: plan(count).stages for count in (0, FEW, MANY)}
    start = seconds(plan(0))

    def recorded(count: int) -> dict[str, float]:
        return {cost.stage: 50 + 3 * ((cost.seconds or 0.0) - start[cost.stage]) for cost in costs[count]}

    return rehearsal_of((FEW, MANY), (recorded(FEW), recorded(MANY)), (costs[0], costs[FEW], costs[MANY]))


@pytest.mark.parametrize("stage", ["docids", "queries", "retriever"])
def test_start_and_pace_are_found(rehearsal: Rehearsal, stage: str) -> None:
    assert rehearsal.stages[stage].start_s == pytest.approx(50)
    assert rehearsal.stages[stage].factor == pytest.approx(3)
    by_rates = seconds(plan(10_000))[stage] - seconds(plan(0))[stage]
    assert seconds(plan(10_000, rehearsal))[stage] == pytest.approx(50 + 3 * by_rates)


def test_what_the_small_ones_cannot_show_is_left_to_the_rates(rehearsal: Rehearsal) -> None:
    """The corpus of 24 documents takes a thousandth of a second longer than that of 2."""
    assert rehearsal.stages["corpus"].factor == 1 and rehearsal.stages["corpus"].start_s == pytest.approx(50, abs=0.1)
    by_rates = seconds(plan(10**6))["corpus"]
    assert seconds(plan(10**6, rehearsal))["corpus"] == pytest.approx(50 + by_rates, rel=0.01)


def test_the_rest_of_the_plan_follows(rehearsal: Rehearsal) -> None:
    plain, found = plan(10_000), plan(10_000, rehearsal)
    assert found.one_query_more.seconds == pytest.approx(3 * plain.one_query_more.seconds, rel=0.02)
    assert found.total.cpu_hours == pytest.approx(3 * plain.total.cpu_hours, rel=0.02)
    larger = plan(10_000, rehearsal, model="1B").stages[-1].seconds
    assert larger is not None and larger - 50 == pytest.approx(
        3 * (seconds(plan(10_000, model="1B"))["retriever"] - seconds(plan(0, model="1B"))["retriever"])
    )


def test_a_stage_without_a_rate_is_in_proportion() -> None:
    unknown = [StageCost(stage="scheme", basis="not known", formula="nobody has measured it")]
    found = rehearsal_of((2, 12), ({"scheme": 7.0, "new": 1.0}, {"scheme": 27.0}), (unknown, unknown, unknown))
    assert found.stages.keys() == {"scheme"}
    [cost] = found.applied(unknown, unknown, 1000)
    assert cost.seconds == pytest.approx(3 + 2 * 1000) and cost.basis == "measured" and cost.gpu_hours is None


def test_a_stage_that_got_faster_starts_and_no_more() -> None:
    unknown = [StageCost(stage="scheme", basis="not known", formula="")]
    found = rehearsal_of((2, 12), ({"scheme": 7.0}, {"scheme": 5.0}), (unknown, unknown, unknown))
    assert found.stages["scheme"] == (7.0, 0.0, 1.0)


def test_models_are_those_of_the_plan() -> None:
    assert models_of(CONFIG).retriever == models_of(CONFIG, model="135M").retriever

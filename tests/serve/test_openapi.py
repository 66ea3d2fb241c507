"""GET /openapi.json is true: what it forbids is refused, and every answer is as it says."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings

from serve.api import create_api
from tests.serve.test_api import Backend
from zerogr.decoding import STRATEGIES


class Describing(Backend):
    """Says of the index what the application does."""

    async def describe(self) -> dict[str, Any]:
        versions = {"current": "b", "previous": "a", "refused": None}
        known = {"strategies": list(STRATEGIES), "k": None, "strategy": None, "versions": versions}
        return {**await super().describe(), **known}


schema = schemathesis.openapi.from_asgi("/openapi.json", create_api(Describing()))


@schema.parametrize()
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_answers_are_as_described(case: schemathesis.Case) -> None:
    case.call_and_validate()

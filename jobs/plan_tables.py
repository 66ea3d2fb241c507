"""What `zerogr plan` prints for people."""

from __future__ import annotations

from collections.abc import Sequence

from zerogr.cost.against import WITHIN, Comparison
from zerogr.cost.machines import Machines
from zerogr.cost.plan import Plan, Sums
from zerogr.progress import duration


def print_plans(plans: Sequence[Plan], machines: Machines) -> None:
    """Prints the first plan stage by stage, the sums of all if there are several, and what was assumed."""
    first = plans[0]
    where = f"{machines.nodes} x {machines.gpu.upper() if machines.gpu else machines.core.hardware}"
    print(f"{first.num_documents:,} documents, retriever {first.model} ({first.parameters / 1e9:.2f}B), {where}")
    print(
        f"  {'stage':<10} {'GPU-hours':>10} {'core-hours':>11} {'wall':>8} {'memory':>8} {'disk':>8} {'$':>9}  known how"
    )
    for cost, dollars in zip(first.stages, first.dollars, strict=True):
        wall = "?" if cost.seconds is None else duration(cost.seconds)
        print(
            f"  {cost.stage:<10} {_hours(cost.gpu_hours):>10} {_hours(cost.cpu_hours):>11} {wall:>8}"
            f" {_bytes(cost.memory_bytes):>8} {_bytes(cost.disk_bytes):>8} {_dollars(dollars):>9}  {cost.basis}"
        )
    _print_sums("together", first.total)
    _print_sums("B + 1", first.one_query_more)
    if len(plans) > 1:
        print("retriever sizes, whole index")
        for plan in plans:
            _print_sums(plan.model, plan.total)
    if first.search_s is not None:
        print(f"a search: {first.search_s * 1000:.0f} ms (beam, k = 100)")
    for cost in first.stages:
        print(f"  {cost.stage}: {cost.basis}; {cost.formula}")
    print("assumed")
    for assumption in first.assumptions:
        print(f"  {assumption}")


def print_against(uri: str, compared: Sequence[Comparison]) -> None:
    """Prints predicted and recorded seconds beside each other."""
    print(f"against {uri}\n  {'stage':<10} {'predicted':>10} {'recorded':>10} {'error':>8}")
    for one in compared:
        verdict = "" if one.is_within is None else "" if one.is_within else f"  more than {WITHIN:.0%} off"
        error = "?" if one.error is None else f"{one.error:+.0%}"
        print(f"  {one.stage:<10} {_seconds(one.predicted_s):>10} {_seconds(one.recorded_s):>10} {error:>8}{verdict}")


def _print_sums(name: str, sums: Sums) -> None:
    print(
        f"  {name:<10} {_hours(sums.gpu_hours):>10} {_hours(sums.cpu_hours):>11} {duration(sums.seconds):>8}"
        f" {'':>8} {_bytes(sums.disk_bytes):>8} {_dollars(sums.dollars):>9}"
    )


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:,.1f} s"


def _dollars(dollars: float | None) -> str:
    return "" if dollars is None else f"{dollars:,.2f}"


def _bytes(size: float | None) -> str:
    if size is None:
        return "?"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"

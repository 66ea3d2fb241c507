from __future__ import annotations

from jobs.stages import summary


def test_summary_is_one_line_for_a_person() -> None:
    """Every count of a stage passes through it: what is zero, empty or nested says nothing in a table."""
    counts = {
        "rows": 10_000,
        "rejected": 0,
        "coverage": 0.31,
        "collisions_per_round": [1500, 20, 0],
        "violations": {"too_few_words": 9000, "function_word": 12},
        "device": "cpu",
        "rejected_reasons": {},
        "rows_compared": [{"system": "bm25"}],
        "tasks": {"drinks": {"docids": 7}},
        "last_loss": None,
    }
    assert summary(counts) == (
        "rows 10,000, coverage 0.31, collisions per round 1,500 → 20 → 0, "
        "violations (too few words 9,000, function word 12), device cpu"
    )
    assert summary({"rows": 0, "collisions_per_round": [0, 0]}) == ""

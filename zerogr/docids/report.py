"""What the docid stage says of its docids: sums per shard, added up, and the rates made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from zerogr.docids.resolve import Assignment


@dataclass(slots=True)
class Sums:
    """Of one shard, or of many."""

    rows: int = 0
    valid_at_first_try: int = 0
    """Rows whose first proposal obeyed the rules as the language model wrote it."""
    repaired: int = 0
    """Rows whose docid is a mended proposal."""
    words: int = 0
    coverage: float = 0.0
    violations: Counter[str] = field(default_factory=Counter)
    """Rows whose first proposal broke a rule, by rule."""

    @classmethod
    def of(cls, docids: pa.Array, sources: pa.Array, coverage: pa.Array, proposals: pa.Table) -> Sums:
        """Returns the sums of a shard's docids [n], with where they come from and what they cover, and of its proposals [n]."""
        first_sources = pc.list_element(proposals.column("sources"), 0)
        broken = pc.value_counts(proposals.column("violations").combine_chunks().flatten()).to_pylist()
        return cls(
            rows=len(docids),
            valid_at_first_try=pc.sum(pc.equal(first_sources, "lm")).as_py() or 0,
            repaired=pc.sum(pc.equal(sources, "repaired")).as_py() or 0,
            words=len(docids) + (pc.sum(pc.count_substring(docids, " ")).as_py() or 0),
            coverage=pc.sum(coverage).as_py() or 0.0,
            violations=Counter({rule["values"]: rule["counts"] for rule in broken}),
        )


def total(sums: Iterable[Sums]) -> Sums:
    """Returns the sums of all shards."""
    added = Sums()
    for shard in sums:
        added.rows += shard.rows
        added.valid_at_first_try += shard.valid_at_first_try
        added.repaired += shard.repaired
        added.words += shard.words
        added.coverage += shard.coverage
        added.violations.update(shard.violations)
    return added


def counts(sums: Sums, assignment: Assignment, *, rejected: int, has_model: bool) -> dict[str, Any]:
    """Returns the stage's counts.

    Shares are of all rows. `coverage` is the mean share of a document's TF-IDF weight, over all its topical words, that the
    words of its docid have (`Terms.coverage`). A docid that was told apart by a term or an ordinal counts with the coverage of
    the document's first candidate, from which it differs by one word.

    Args:
        sums: Of all shards.
        assignment: How the collisions went.
        rejected: Documents without a docid.
        has_model: Whether a language model proposed the docids: if not, nothing was valid at first try or repaired.
    """

    def share(number: float) -> float:
        return round(number / max(sums.rows, 1), 4)

    of_model = {"valid_at_first_try": share(sums.valid_at_first_try), "repaired": share(sums.repaired)}
    return {
        "rows": sums.rows,
        "rejected": rejected,
        **(of_model if has_model else {}),
        "coverage": share(sums.coverage),
        **assignment.counts,
        "collisions_per_round": assignment.collisions_per_round,
        "violations": dict(sorted(sums.violations.items())),
        "words_per_docid": round(sums.words / max(sums.rows, 1), 2),
    }

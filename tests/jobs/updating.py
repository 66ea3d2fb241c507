"""Updates as the tests ask for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import update as update_job
from zerogr import Retriever
from zerogr.editing.update import Request

LENIENT = ["update.max_forgetting=1"]


def update(place: Path, *, add: str | None = None, remove: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    """Runs an update of the index at a place."""
    method = options.pop("method", "none")
    source = None if add is None else str(place / add)
    request = Request(source=source, remove=remove, **options)
    return update_job.run(str(place / "index"), request, [*LENIENT, f"update.method.name={method}"])


def find_all(place: Path, query: str = "what about it", **options: Any) -> list[str]:
    """Returns the doc_ids of everything that a search can find."""
    retriever = Retriever.load(str(place / "index"), device="cpu")
    [hits] = retriever.search([query], k=100, **{"strategy": "beam", **options})
    return [hit.doc_id for hit in hits]

"""Views of an index in which only some documents exist, those that were asked for last kept ready."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from zerogr.ranking.ranker import Ranker
from zerogr.search.answer import Documents
from zerogr.search.writer import Writer
from zerogr.trie.conditions import Conditions

MOST = 8
"""That are kept; each takes about 12 bytes for every document that it lists, and may take room on a GPU."""


class Views:
    """Writer and ranker of an index, for all its documents or for some."""

    def __init__(self, writer: Writer, ranker: Ranker, documents: Documents) -> None:
        """Puts the parts together: those for all documents."""
        self._all, self._documents = (writer, ranker), documents
        self._kept = OrderedDict[str, tuple[Writer, Ranker]]()

    def of(
        self, allow: Sequence[str] | None = None, deny: Sequence[str] | None = None, filter: Conditions | None = None
    ) -> tuple[Writer, Ranker]:
        """Returns writer and ranker for the documents that `zerogr.retriever.Retriever.restricted` leaves.

        Raises:
            UserError: The filter does not fit the documents' metadata.
        """
        if allow is None and deny is None and filter is None:
            return self._all
        key = repr((*(None if keys is None else list(keys) for keys in (allow, deny)), filter))
        if key not in self._kept:
            writer, ranker = self._all
            restricted, left = ranker.restrict(self._documents.chosen(allow, deny, filter))
            self._kept[key] = writer.restricted(left), restricted
            if len(self._kept) > MOST:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

"""None: the trie alone changes. Docids of words can be written without having been learnt; numbers cannot."""

from __future__ import annotations

from pydantic import Field

from zerogr.config.base import MethodSettings
from zerogr.editing.method import Change, New, Setting


class NoneSettings(MethodSettings):
    """Of the method none."""

    learns = False

    name: str = Field("none", description="New docids can be written; the retriever stays as it is.")


class None_:
    """See the module."""

    Settings = NoneSettings

    def __init__(self, settings: NoneSettings) -> None:
        """`settings` say nothing more."""

    def update(self, setting: Setting, new: New) -> Change:
        """Returns nothing that would have changed."""
        return Change()

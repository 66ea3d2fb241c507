"""The docid trie: what the retriever may write."""

from zerogr.trie.filtered import FilteredTrie
from zerogr.trie.trie import DocidTrie

__all__ = ["DocidTrie", "FilteredTrie"]

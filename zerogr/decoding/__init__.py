"""Constrained decoding: a language model may only write docids of the trie, and a strategy decides which.

Every strategy is a policy over one lazily expanded, cached tree of prefixes, so the model sees no prefix twice.
Read `tree`, then `strategies`, then `draws`; `language_model` connects a Hugging Face model.
"""

from __future__ import annotations

from zerogr.decoding.decoder import Decoded, DecodedList, decode, decode_batch
from zerogr.decoding.scoring import NORMALISATIONS
from zerogr.decoding.strategies import STRATEGIES

__all__ = ["NORMALISATIONS", "STRATEGIES", "Decoded", "DecodedList", "decode", "decode_batch"]

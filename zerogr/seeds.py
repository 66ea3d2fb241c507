"""Seeds that depend on what is drawn, never on when or where: hash of the run's seed, the document and the sample."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, *parts: str | int) -> int:
    """Returns a 63-bit seed, a function of its arguments alone."""
    digest = hashlib.blake2b(
        "\x1f".join([str(seed), *map(str, parts)]).encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    return int.from_bytes(digest, "little") >> 1

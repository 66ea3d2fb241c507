"""The log of a training run: a JSON object per line (`zerogr.training.loop.train` says which), read by people and programs."""

from __future__ import annotations

import json
import time
from typing import Any

from zerogr.store import storage


class TrainingLog:
    """Keeps the log below a URI. A resumed run goes on in it, and takes back the steps that are to be taken again."""

    PUBLISH_EVERY_S = 30.0

    def __init__(self, uri: str) -> None:
        """Reads what is there; `uri` is the file's."""
        self._uri, self._published = uri, time.monotonic()
        text = storage.read_bytes(uri).decode() if storage.exists(uri) else ""
        self._lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def add(self, line: dict[str, Any]) -> None:
        """Adds a line, which has a "step"; the file follows within half a minute, unless the process is killed before."""
        while self._lines and self._lines[-1]["step"] >= line["step"]:
            self._lines.pop()
        self._lines.append(line)
        if time.monotonic() - self._published >= self.PUBLISH_EVERY_S:
            self.publish()

    def publish(self) -> None:
        """Writes the file."""
        storage.write_bytes(self._uri, self.text().encode())
        self._published = time.monotonic()

    def text(self) -> str:
        """Returns the whole log as JSON lines."""
        return "".join(json.dumps(line, allow_nan=False) + "\n" for line in self._lines)

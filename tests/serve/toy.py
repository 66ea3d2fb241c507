"""A small service for the page and the client: twelve documents, real decoding, and a table of words instead of a model."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

from serve.api import Answered, create_api
from serve.requests import ExplainRequest, SearchRequest
from zerogr.decoding import STRATEGIES, DecodedList
from zerogr.decoding.decoder import Underway, policy
from zerogr.decoding.scoring import CallableScorer
from zerogr.decoding.tree import ScoredTree
from zerogr.errors import UserError
from zerogr.ranking.ranker import Part
from zerogr.search.answer import Hit
from zerogr.search.record import Explained, Texts, record
from zerogr.trie import DocidTrie

DOCUMENTS = {
    "wing lift": ("Lift of a wing", "The lift of a wing grows with the angle of attack until the flow separates."),
    "wing lift slotted flap": ("Slotted flaps", "A slotted flap adds lift at low speed, for take-off and landing."),
    "wing slip stream propeller lift": ("Wings in a slipstream", "Behind a propeller the wing carries more lift."),
    "wing slip stream jet": ("Jets under a wing", "A jet below the wing bends the stream around it."),
    "wing sweep transonic drag": ("Swept wings", "Sweep delays the rise of drag near the speed of sound."),
    "wing icing": ("Ice on wings", "Ice changes the shape of a leading edge."),
    "boundary layer transition": ("Transition", "Where a laminar boundary layer becomes turbulent."),
    "boundary layer suction": ("Suction", "Suction through slots keeps a boundary layer laminar."),
    "propeller noise blade": ("Noise of propellers", "The tips of the blades make most of the noise."),
    "propeller blade pitch": ("Pitch", "A propeller whose blades turn keeps its efficiency."),
    "shock wave tube": ("Shock tubes", "A membrane bursts, and a shock wave runs down the tube."),
    "supersonic inlet shock": ("Inlets", "Oblique shocks slow the air before the compressor."),
}
"""Docid -> title and text."""
HTML = "<img src=x onerror=alert(1)>"
END = 0


class ToyBackend:
    """Searches with the words of the query; some queries do something else."""

    def __init__(self) -> None:
        self.release = threading.Event()
        """Lets the query `wait` be answered."""
        self.requests: list[tuple[str, SearchRequest]] = []
        self.failures: list[Exception] = []
        """What the next requests fail with."""
        self._words = ["", *sorted({word for docid in DOCUMENTS for word in docid.split()})]
        self._trie = DocidTrie.build([[self._words.index(word) for word in docid.split()] for docid in DOCUMENTS])

    log_queries = False

    async def search(self, request: SearchRequest) -> Answered:
        self.requests.append(("search", request))
        if request.query == "wait":
            await asyncio.to_thread(self.release.wait, 60)
        return Answered([[hit.as_json() for hit in self._found(request, text)[2]] for text in request.texts], "toy-1")

    async def explain(self, request: ExplainRequest) -> Answered:
        self.requests.append(("explain", request))
        tree, found, hits = self._found(request, request.query)
        if request.query == "sums":
            parts = [[Part("terms", "wing", 0.5, 1.5), Part("lexical", HTML, None, 0.25)] for _ in hits]
            return Answered([Explained(hits, None, parts).as_json()], "toy-1")
        texts = Texts(self._token, lambda tokens: "".join(map(self._token, filter(None, tokens))), self._docid)
        kept = record(tree, found, [each.row for each in found], texts, strategy=request.strategy or "beam")
        return Answered([Explained(hits, kept if hits else None, None).as_json()], "toy-1")

    async def describe(self) -> dict[str, Any]:
        return {
            "index_version": "toy-1", "instruction": "Find the report that answers.", "strategies": list(STRATEGIES),
            "k": 5, "strategy": "beam", "stages": {"corpus": {"counts": {"rows": len(DOCUMENTS)}}},
        }  # fmt: skip

    async def is_ready(self) -> bool:
        return not self.failures

    async def roll_back(self) -> dict[str, Any]:
        raise UserError("there is one version of the toy")

    def observe(self, status: int, num_queries: int, took_ms: float, spent: Any) -> None:
        """Counts nothing."""

    def refused(self, reason: str) -> None:
        """Counts nothing."""

    def metrics(self) -> bytes:
        return b""

    def _found(self, request: SearchRequest, text: str) -> tuple[ScoredTree, DecodedList, list[Hit]]:
        if self.failures:
            raise self.failures.pop(0)
        if text == "a mistake":
            raise UserError("the index knows no such instruction")
        tree = ScoredTree(self._trie, END, "allowed")
        if text == "nothing":
            return tree, DecodedList(), []
        strategy, k = request.strategy or "beam", request.k or 5
        underway = Underway(tree, policy(strategy)(tree, k, 0))
        scorer = CallableScorer(lambda prefixes: np.stack([self._logits(text, prefix) for prefix in prefixes]))
        while underway.requests:
            underway.resume(scorer.log_probs(underway.requests, "allowed"))
        found = underway.documents(k, strategy)
        hits = []
        for rank, each in enumerate(found, 1):
            title, said = DOCUMENTS[self._docid(each.tokens)]
            shown = {"markup": HTML, "long": "w" * 300}.get(text, title)
            hits.append(Hit(f"report-{each.row}", self._docid(each.tokens), rank, each.score, shown, said))
        return tree, found, hits

    def _logits(self, text: str, prefix: tuple[int, ...]) -> np.ndarray:
        noise = np.random.default_rng(zlib.crc32(repr((text, prefix)).encode())).normal(size=len(self._words))
        return noise + 2.5 * np.array([bool(word) and word in text for word in self._words])

    def _token(self, token: int) -> str:
        word = self._words[token]
        return "<end>" if token == END else word if word == "stream" else f" {word}"  # slip|stream is one word

    def _docid(self, tokens: Any) -> str:
        return " ".join(self._words[token] for token in tokens if token != END)


@contextmanager
def served(backend: Any, around: Callable[[Any], Any] = lambda api: api) -> Iterator[str]:
    """Serves a backend on loopback, with something around the API; yields its URL."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(around(create_api(backend)), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)

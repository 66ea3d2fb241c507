"""Answering many requests at once: a thread decodes, and a request joins it at its next round.

    answering = retriever.answering()
    request = answering.ask(["wing slipstream"], k=10)
    request.found.result()                              # a concurrent future: the ranking of each query
    answering.hits(request)

On the reference decoder a request's queries enter the running batch one by one and leave it when they are done
(`zerogr.decoding.stream`). Array programs (`zerogr.decoding.device`) are batches of one kind each; there, requests that wait
are put together by kind. The oldest request goes first; one whose time is over is given up, waiting or not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from typing import Any

import numpy as np

from zerogr.decoding.stream import Search, Stream
from zerogr.ranking.ranker import Leaves, Part, Ranking
from zerogr.search.answer import Documents, Hit
from zerogr.search.planning import Plan
from zerogr.search.record import MOST_PARTS, Explained, Record, record
from zerogr.search.request import Cost, Request
from zerogr.search.writer import Writer

GIVEN_WAY = 14
"""By how much the thread is nicer than its process, on a CPU; 19 is the most there is."""
MOST_QUERIES = 32
"""That are decoded together."""
MOST_SLOTS = 2**18
"""Keys and values of tokens that are held at a time before the next query has to wait."""

logger = logging.getLogger(__name__)


class ClosedError(RuntimeError):
    """Nothing is answered any more."""


class LostError(RuntimeError):
    """The thread has ended by a fault, and answers nothing any more."""


class Answering:
    """A retriever that decodes what it is asked in a thread of its own."""

    def __init__(
        self,
        documents: Documents,
        plan: Callable[..., Plan],
        writer: Writer,
        instruction: str,
        *,
        most_queries: int = MOST_QUERIES,
        most_slots: int = MOST_SLOTS,
    ) -> None:
        """Starts the thread.

        Args:
            documents: Of the index.
            plan: Makes the plan of a request's arguments.
            writer: Of all documents.
            instruction: Of requests that have none.
            most_queries, most_slots: Decoded together, and slots of the cache in use, at most; one query may need more slots.
        """
        self._documents, self._plan, self._writer, self._instruction = documents, plan, writer, instruction
        self._most_queries, self._most_slots = most_queries, most_slots
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._is_closing = False
        self._loss = ""
        self._stream: Stream | None = None
        self._searches: dict[Search, tuple[Request, int]] = {}
        self._thread = threading.Thread(target=self._run, name="answering", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests of which a query has not begun."""
        return len(self._waiting)

    @property
    def num_decoding(self) -> int:
        """Queries that are being decoded."""
        return len(self._searches)

    @property
    def num_slots(self) -> int:
        """Slots of the cache that hold keys and values."""
        stream = self._stream
        return 0 if stream is None else stream.num_slots

    def check(self) -> None:
        """Raises LostError if the thread has ended by a fault."""
        if self._loss:
            raise LostError(self._loss)

    def ask(
        self,
        queries: Sequence[str],
        *,
        instruction: str | None = None,
        timeout_s: float = 60.0,
        is_recorded: bool = False,
        **how: Any,
    ) -> Request:
        """Returns a request, whose future holds the ranking of each query; of a recorded one `explained` has more.

        The future raises UserError or ValueError for a mistake in the request, TimeoutError when its time is over, and
        LostError when the thread ends by a fault.

        Raises:
            ClosedError: It was closed.
            LostError: The thread has ended by a fault.
        """
        request = Request(queries, how, instruction, time.monotonic() + timeout_s, is_recorded=is_recorded)
        with self._changed:
            self.check()
            if self._is_closing:
                raise ClosedError("nothing is answered any more")
            self._waiting.append(request)
            self._changed.notify()
        return request

    def hits(self, request: Request) -> list[list[Hit]]:
        """Returns the answer of a request whose future is done, with what it wants of the documents; reads the corpus."""
        assert request.plan is not None
        return self._documents.answers(request.queries, request.found.result(), request.plan.wanted)

    def explained(self, request: Request) -> list[Explained]:
        """Returns the answer of a recorded request whose future is done, and how it came about; reads the corpus."""
        return [Explained(hits, *how) for hits, how in zip(self.hits(request), request.records, strict=True)]

    def close(self) -> None:
        """Takes no more requests; those that it has are answered, then the thread ends."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for the end of the thread."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            if self._writer.model.model.device.type == "cpu":
                _give_way()
            self._answer()
        except BaseException as fault:  # outside a plan and a round, where nobody would notice: whoever waits is told
            logger.critical("the answering thread has ended by a fault", exc_info=fault)
            with self._changed:
                self._loss = f"the answering thread has ended by {type(fault).__name__}: {fault}"
                left = {*self._waiting, *(request for request, _ in self._searches.values())}
                self._waiting.clear()
            for request in left:
                _fail(request, LostError(self._loss))

    def _answer(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._searches:
                    if self._is_closing:
                        return
                    self._changed.wait()
            self._give_up()
            self._admit()
            self._round()

    def _give_up(self) -> None:
        """Lets go of requests that nobody waits for, and of those whose time is over."""
        now = time.monotonic()
        with self._changed:
            late = [request for request in self._waiting if request.is_dropped or request.deadline < now]
            self._waiting = deque(request for request in self._waiting if request not in late)
        late += [request for request, _ in self._searches.values() if request.is_dropped or request.deadline < now]
        for request in dict.fromkeys(late):
            self._forget(request)
            _fail(request, TimeoutError("the search took too long"))

    def _admit(self) -> None:
        """Lets queries join, the oldest first, while there is room."""
        while self._waiting:
            request = self._waiting[0]
            try:
                if request.plan is None:
                    request.taken_at = time.monotonic()
                    request.plan = self._plan(**request.how)
                    self._prepare(request)
                if self._is_batch(request):
                    self._waiting.popleft()
                    self._write([request, *self._alike(request)])
                    continue
                if not request.queries:
                    self._finish(request)
                while request.num_entered < len(request.queries):
                    if not self._has_room():
                        return
                    self._enter(request)
            except Exception as error:  # a mistake in it, or a fault: it is told, and the others go on
                self._forget(request)
                _fail(request, error)
            if self._waiting and self._waiting[0] is request:
                self._waiting.popleft()

    def _prepare(self, request: Request) -> None:
        instructions = [request.instruction or self._instruction] * len(request.queries)
        request.prompts, request.begun_at = self._writer.prompts(request.queries, instructions), time.monotonic()

    def _has_room(self) -> bool:
        if not self._searches:
            return True
        assert self._stream is not None
        return len(self._searches) < self._most_queries and self._stream.num_slots < self._most_slots

    def _enter(self, request: Request) -> None:
        plan, number = request.plan, request.num_entered
        assert plan is not None
        request.num_entered += 1
        if not plan.num_leaves:
            self._written(
                request, number, Leaves(np.empty(0, np.int64), np.empty(0), str), Cost(len(self._searches), 0, 0)
            )
            return
        options = dict(plan.options)
        strategy, seed, normalise = options.pop("strategy"), options.pop("seed"), options.pop("normalise")
        writer = plan.writer
        if self._stream is None:
            self._stream = Stream(writer.model, eos_token_id=writer.chat.end_token_id, most_slots=self._most_slots)
        search = Search(
            request.prompts[number],
            writer.trie,
            plan.num_leaves,
            strategy,
            seed,
            normalise,
            options,
            request.is_recorded,
        )
        self._stream.enter(search)
        self._searches[search] = (request, number)

    def _round(self) -> None:
        if self._stream is None or not self._searches:
            return
        try:
            done = list(self._stream.round())
        except Exception as error:  # such as memory that is not there: whoever took part is told, others begin anew
            requests = {request for request, _ in self._searches.values()}
            self._searches.clear()
            self._stream = None
            for request in requests:
                _fail(request, error)
            with self._changed:
                self._waiting = deque(request for request in self._waiting if request not in requests)
            return
        num_together = len(self._searches)
        for search, documents in done:
            request, number = self._searches.pop(search)
            assert request.plan is not None
            if request.is_recorded:
                request.decoded[number] = documents
            cost = Cost(num_together, documents.num_rounds, documents.num_scored)
            self._written(request, number, request.plan.writer.leaves_of(documents), cost)

    def _written(self, request: Request, number: int, leaves: Leaves, cost: Cost) -> None:
        request.leaves[number] = leaves
        request.costs.append(cost)
        if len(request.leaves) == len(request.queries):
            self._finish(request)

    def _finish(self, request: Request) -> None:
        """Ranks what was written for all queries of a request."""
        assert request.plan is not None
        leaves = [request.leaves[number] for number in range(len(request.queries))]
        try:
            found = request.plan.rankings(self._documents, request.queries, request.prompts, leaves)
            if request.is_recorded:
                request.records = [self._record(request, number, ranking) for number, ranking in enumerate(found)]
                request.decoded.clear()
        except Exception as error:  # without a score to re-rank by, for one
            _fail(request, error)
            return
        request.found_at = time.monotonic()
        with contextlib.suppress(InvalidStateError):  # whoever asked has left this moment
            request.found.set_result(found)

    def _record(self, request: Request, number: int, ranking: Ranking) -> tuple[Record | None, list[list[Part]] | None]:
        """Returns the tree of a query's search, or where scores are sums the parts of its hits.

        In the thread that decodes: the tokenizer and the tree are this thread's. It takes milliseconds.
        """
        assert request.plan is not None
        plan, rows = request.plan, ranking.rows.tolist()
        if plan.ranker.num_traced:
            query, leaves = request.queries[number], request.leaves[number]
            return None, [plan.ranker.parts(query, leaves, row)[:MOST_PARTS] for row in rows]
        decoded = request.decoded[number]
        if decoded.tree is None:  # nothing may be found
            return None, None
        return record(decoded.tree, decoded, rows, plan.writer.texts, strategy=plan.options["strategy"]), None

    def _forget(self, request: Request) -> None:
        """Lets the queries of a request go."""
        for search in [search for search, (owner, _) in self._searches.items() if owner is request]:
            assert self._stream is not None
            self._stream.leave(search)
            del self._searches[search]

    def _is_batch(self, request: Request) -> bool:
        """Whether array programs decode it; they leave no tree behind."""
        assert request.plan is not None
        return request.plan.writer.is_on_device and request.plan.num_leaves > 0 and not request.is_recorded

    def _alike(self, first: Request) -> list[Request]:
        """Takes those requests out of the queue that are decoded in one batch with another, as many as there is room for."""
        assert first.plan is not None
        room, chosen = self._most_queries - len(first.queries), []
        for request in list(self._waiting):
            if room < len(request.queries):
                break
            if not request.is_recorded and request.how.keys() == first.how.keys() and request.how == first.how:
                request.taken_at, request.plan = time.monotonic(), first.plan
                self._prepare(request)
                chosen.append(request)
                room -= len(request.queries)
        for request in chosen:
            self._waiting.remove(request)
        return chosen

    def _write(self, requests: list[Request]) -> None:
        """Decodes requests of one plan in one batch."""
        plan = requests[0].plan
        assert plan is not None
        prompts = [prompt for request in requests for prompt in request.prompts]
        try:
            written = iter(plan.writer.write(prompts, plan.num_leaves, plan.options))
        except Exception as error:
            for request in requests:
                _fail(request, error)
            return
        for request in requests:
            for number in range(len(request.queries)):
                self._written(request, number, next(written), Cost(len(prompts)))


def _give_way() -> None:
    """Lowers this thread's priority where threads have their own: it needs a core all the time, and whoever takes requests or
    refuses them on the same cores needs one for a moment, now."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + GIVEN_WAY, 19))


def _fail(request: Request, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):
        request.found.set_exception(error)

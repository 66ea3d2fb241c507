"""Answering many requests at once: whenever they come and whoever is beside them, they get what `search` gives."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from tests import tiny
from zerogr import Retriever
from zerogr.errors import UserError
from zerogr.search.answering import Answering, LostError

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_thread")]

QUERIES = ["what about the history of coffee", "the price of sailing", "storage of bread", "chess for experts"]
WAIT_S = 120


@pytest.fixture(scope="module")
def retriever(tiny_index: str) -> Retriever:
    return Retriever.load(tiny_index, device="cpu")


def drawn(draw: np.random.Generator) -> dict[str, Any]:
    """Returns a request at random."""
    every = [row["_id"] for row in tiny.documents()]
    how: dict[str, Any] = {
        "k": int(draw.integers(1, 15)),
        "strategy": str(draw.choice(["greedy", "beam", "nucleus", "reverse_annealing", "best_first"])),
        "seed": int(draw.integers(3)),
    }
    some = [every[i] for i in draw.permutation(40)[: draw.integers(1, 40)]]
    return how | [{}, {"allow": some}, {"deny": some}][draw.integers(3)]


def names(answer: list[list[Any]]) -> list[list[tuple[str, float]]]:
    return [[(hit.doc_id, pytest.approx(hit.score, abs=1e-4)) for hit in hits] for hits in answer]


@pytest.mark.parametrize(("seed", "decoder"), [(0, "reference"), (1, "reference"), (2, "reference"), (3, "device")])
def test_answers_are_those_of_search(tiny_index: str, seed: int, decoder: str) -> None:
    draw = np.random.default_rng(seed)
    retriever = Retriever.load(tiny_index, device="cpu", decoder=decoder)
    answering = retriever.answering(most_queries=5)
    asked = []
    for _ in range(12):
        queries = [str(query) for query in draw.choice(QUERIES, draw.integers(1, 4))]
        instruction = [None, "Find the text."][draw.integers(2)]
        how = drawn(draw)
        asked.append((queries, instruction, how, answering.ask(queries, instruction=instruction, **how)))
        if draw.random() < 0.5:
            time.sleep(0.01)
    found = [(*rest, request.found.result(WAIT_S), answering.hits(request)) for *rest, request in asked]
    answering.close()
    answering.join(WAIT_S)
    for queries, instruction, how, _, hits in found:
        restrictions = {key: how.pop(key) for key in ("allow", "deny") if key in how}
        searched = retriever.restricted(**restrictions) if restrictions else retriever
        expected = searched.search(queries, instruction=instruction, **how)
        assert [[(hit.doc_id, hit.score) for hit in of_query] for of_query in hits] == names(expected)


def test_no_query_is_answered_by_nothing(retriever: Retriever) -> None:
    answering = retriever.answering()
    assert answering.ask([]).found.result(WAIT_S) == []
    answering.close()


def test_a_mistake_is_told_to_whoever_made_it(retriever: Retriever) -> None:
    answering = retriever.answering()
    good = answering.ask(QUERIES[:1], k=3)
    wrong = {
        UserError: [{"ranking": "lexical"}, {"fields": ["colour"]}, {"filter": {"year": 3}}, {"rerank": True}],
        ValueError: [{"strategy": "beams"}, {"width": 3}, {"strategy": "nucleus", "top_p": 7.0}],
    }
    requests = [(error, answering.ask(QUERIES[:2], **how)) for error, every in wrong.items() for how in every]
    for error, request in requests:
        with pytest.raises(error):
            request.found.result(WAIT_S)
    assert len(good.found.result(WAIT_S)) == 1
    assert len(answering.ask(QUERIES, k=3).found.result(WAIT_S)) == 4, "the thread goes on"
    answering.close()


def test_what_is_late_or_dropped_makes_room(retriever: Retriever) -> None:
    answering = retriever.answering(most_queries=1)
    late = answering.ask(QUERIES, k=10, timeout_s=-1.0)
    with pytest.raises(TimeoutError, match="too long"):
        late.found.result(WAIT_S)
    dropped = [answering.ask(QUERIES * 50, k=40, strategy="best_first") for _ in range(3)]
    for request in dropped:
        request.drop()
    assert len(answering.ask(QUERIES[:1], k=3).found.result(WAIT_S)) == 1
    for request in dropped:
        with pytest.raises(TimeoutError):
            request.found.result(WAIT_S)
    assert answering.num_waiting == answering.num_decoding == 0
    answering.close()


def test_array_programs_take_requests_of_one_kind_together(tiny_index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = Retriever.load(tiny_index, device="cpu", decoder="device")
    sizes, may_begin = [], threading.Event()
    write = type(retriever.writer).write

    def noted(self: Any, prompts: Any, *rest: Any) -> Any:
        may_begin.wait(WAIT_S)
        sizes.append(len(prompts))
        return write(self, prompts, *rest)

    monkeypatch.setattr(type(retriever.writer), "write", noted)
    answering = retriever.answering(most_queries=6)
    requests = [answering.ask(QUERIES[:2], k=k) for k in (3, 3, 5, 3, 3)]
    while answering.num_waiting > 4:
        time.sleep(0.01)
    may_begin.set()
    assert all(len(request.found.result(WAIT_S)) == 2 for request in requests)
    answering.close()
    assert sum(sizes) == 10 and max(sizes) > 2


def test_no_more_are_decoded_together_than_there_is_room_for(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = []
    round_of = Answering._round

    def noted(self: Answering) -> None:
        most.append(self.num_decoding)
        round_of(self)

    monkeypatch.setattr(Answering, "_round", noted)
    answering = retriever.answering(most_queries=3)
    requests = [answering.ask(QUERIES, k=5) for _ in range(4)]
    for request in requests:
        request.found.result(WAIT_S)
    answering.close()
    answering.join(WAIT_S)
    assert max(most) == 3 and most.count(3) > len(most) / 2, "places are filled as they become free"


def test_a_fault_of_a_round_ends_its_requests_alone(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    answering = retriever.answering()
    assert answering.ask(QUERIES[:1], k=3).found.result(WAIT_S)
    model = retriever.writer.model

    def out_of_memory(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(model, "forward", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            answering.ask(QUERIES[:2], k=3).found.result(WAIT_S)
    assert answering.ask(QUERIES[:1], k=3).found.result(WAIT_S)
    answering.close()


def test_what_it_has_is_answered_when_it_closes(retriever: Retriever) -> None:
    answering = retriever.answering(most_queries=2)
    requests = [answering.ask(QUERIES, k=5) for _ in range(3)]
    answering.close()
    with pytest.raises(RuntimeError, match="answered any more"):
        answering.ask(QUERIES)
    assert all(len(request.found.result(WAIT_S)) == 4 for request in requests)
    answering.join(WAIT_S)
    assert not any(thread.name == "answering" and thread is answering._thread for thread in threading.enumerate())


def test_a_fault_of_the_thread_is_told_and_seen(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every request would wait until its time is over, and nobody would know why."""
    answering = retriever.answering(most_queries=1)
    answering.check()
    underway = answering.ask(QUERIES * 50, k=40, strategy="best_first")
    while not answering.num_decoding:
        time.sleep(0.01)

    def fault(*_: Any) -> None:
        raise MemoryError("no room for a list")

    monkeypatch.setattr(answering, "_give_up", fault)
    with pytest.raises(LostError, match="has ended by MemoryError: no room for a list"):
        underway.found.result(WAIT_S)
    answering.join(WAIT_S)
    for ask_or_check in (lambda: answering.ask(QUERIES), answering.check):
        with pytest.raises(LostError, match="has ended by MemoryError"):
            ask_or_check()


@pytest.mark.parametrize("decoder", ["reference", "device"])
def test_a_request_knows_what_it_has_cost(tiny_index: str, decoder: str) -> None:
    retriever = Retriever.load(tiny_index, device="cpu", decoder=decoder)
    answering = retriever.answering(most_queries=2)
    before = time.monotonic()
    request = answering.ask(QUERIES, k=3, strategy="beam")
    request.found.result(WAIT_S)
    took_s, work = time.monotonic() - before, request.work
    parts = (work.queue_s, work.prompt_s, work.decoding_s)
    assert min(parts) >= 0 and sum(parts) <= took_s
    assert len(work.costs) == len(QUERIES)
    if decoder == "device":
        assert [tuple(cost) for cost in work.costs] == [(4, None, None)] * 4
    else:
        assert max(cost.num_together for cost in work.costs) == 2
        assert all(cost.num_prefixes >= cost.num_rounds > 0 for cost in work.costs)
    answering.close()

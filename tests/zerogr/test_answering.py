"""Answering many requests at once: whenever they come and whoever is beside them, they get what `search` gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests import tiny
from zerogr import Retriever
from zerogr.decoding import STRATEGIES
from zerogr.errors import UserError
from zerogr.search.answering import Answering
from zerogr.search.record import Branch

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


def leaves(branch: Branch, path: tuple[Branch, ...] = ()) -> Iterator[tuple[Branch, ...]]:
    """Yields the branches from the root's child down to each leaf that is kept."""
    if branch.docid is not None:
        yield path
    for child in branch.children:
        yield from leaves(child, (*path, child))


@pytest.mark.parametrize("decoder", ["reference", "device"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_recorded_search_shows_what_the_model_thought(tiny_index: str, decoder: str, strategy: str) -> None:
    retriever = Retriever.load(tiny_index, device="cpu", decoder=decoder)
    answering = retriever.answering()
    how = {"k": 5, "strategy": strategy, "deny": ["bread-1"], "fields": ["title"]}
    plain, recorded = answering.ask(QUERIES[:2], **how), answering.ask(QUERIES[:2], is_recorded=True, **how)
    plain.found.result(WAIT_S), recorded.found.result(WAIT_S)
    explained = answering.explained(recorded)
    answering.close()
    assert names([each.hits for each in explained]) == names(answering.hits(plain))
    restricted = retriever.restricted(deny=["bread-1"])
    doc_ids = [[hit.doc_id for hit in each.hits] for each in explained]
    for each, traces in zip(explained, restricted.trace(QUERIES[:2], doc_ids), strict=True):
        assert each.tree is not None and each.parts is None and each.tree.strategy == strategy
        assert each.tree.num_docids == 39 and each.tree.root.num_hits == 5
        paths = {path[-1].docid: path for path in leaves(each.tree.root)}
        assert [branch.best_rank for branch in paths[each.hits[0].docid]] == [1] * len(paths[each.hits[0].docid])
        for rank, (hit, trace) in enumerate(zip(each.hits, traces, strict=True), 1):
            path, steps = paths[hit.docid], trace.steps
            assert path[-1].best_rank == rank
            assert [branch.token for branch in path] == [
                retriever.writer.token_text(step.token) for step in steps[: len(path)]
            ]
            assert [branch.log_prob for branch in path] == pytest.approx(
                [step.log_prob for step in steps[: len(path)]], abs=1e-4
            )
            assert path[-1].path_log_prob == pytest.approx(hit.score, abs=1e-4)


def test_a_recorded_search_by_sums_shows_the_parts(hybrid_index: str) -> None:
    retriever = Retriever.load(hybrid_index, device="cpu")
    answering = retriever.answering()
    request = answering.ask(QUERIES[:1], is_recorded=True, k=4)
    request.found.result(WAIT_S)
    [explained] = answering.explained(request)
    nothing = answering.ask(QUERIES[:1], is_recorded=True, allow=[])
    nothing.found.result(WAIT_S)
    answering.close()
    assert explained.tree is None and explained.parts is not None and len(explained.parts) == 4
    for hit, parts in zip(explained.hits, explained.parts, strict=True):
        assert sum(part.score for part in parts) == pytest.approx(hit.score)
    value = explained.as_json()
    assert value["tree"] is None and value["hits"][0]["parts"][0].keys() == {"ranker", "text", "probability", "score"}
    assert [each.hits for each in answering.explained(nothing)] == [[]]


def test_a_recorded_search_that_may_find_nothing(retriever: Retriever) -> None:
    answering = retriever.answering()
    request = answering.ask(QUERIES[:2], is_recorded=True, allow=[])
    request.found.result(WAIT_S)
    answering.close()
    assert [each.as_json() for each in answering.explained(request)] == [{"hits": [], "tree": None}] * 2

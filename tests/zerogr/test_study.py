"""The dynamic study: how a corpus is cut, and its formulas."""

from __future__ import annotations

import numpy as np
import pytest

from zerogr.config.file import config_of
from zerogr.corpus.judged import Query
from zerogr.errors import UserError
from zerogr.study.dynamic import Judged, forgetting, generalisation, hits, summary, update_overrides, variants
from zerogr.study.parts import split, split_by_date


class TestParts:
    def test_every_document_is_in_one(self) -> None:
        parts = split(103, 5, 0.9, seed=3)
        assert [len(part) for part in parts] == [93, 2, 2, 2, 2, 2]
        assert sorted(np.concatenate(parts).tolist()) == list(range(103))
        assert all((a == b).all() for a, b in zip(parts, split(103, 5, 0.9, seed=3), strict=True))
        assert (parts[0] != split(103, 5, 0.9, seed=4)[0]).any()

    def test_by_date_the_oldest_come_first(self) -> None:
        dates = ["2020", "2019", "2024", "2021", "2022", "2023"]
        assert [part.tolist() for part in split_by_date(dates, 2, 0.5)] == [[0, 1, 3], [4, 5][:2], [2]]

    def test_too_few_documents(self) -> None:
        with pytest.raises(UserError, match="6 documents cannot be cut into 90% and 5 increments of one or more"):
            split(6, 5, 0.9, seed=0)


def judged(relevant: dict[str, set[str]], elsewhere: dict[str, set[str]] | None = None) -> Judged:
    queries = {query_id: Query(query_id, f"text {query_id}") for query_id in relevant}
    return Judged(queries, relevant, {query_id: (elsewhere or {}).get(query_id, set()) for query_id in relevant})


class TestFigures:
    def test_hits_leave_out_what_is_relevant_elsewhere(self) -> None:
        run = {"a": ["x", "1"], "b": ["2", "x"], "c": ["y"] * 3}
        part = judged({"a": {"1"}, "b": {"x"}, "c": {"3"}}, {"a": {"x"}})
        found = hits(part, run)
        assert found["hits@1"] == pytest.approx(1 / 3, abs=1e-4)  # a alone: x is relevant to it, in another part
        assert found["hits@10"] == pytest.approx(2 / 3, abs=1e-4)
        assert found["mrr@10"] == pytest.approx((1 + 1 / 2) / 3, abs=1e-4)
        assert hits(judged({}), run) == {}

    def test_the_formulas(self) -> None:
        initial = [{"hits@10": share, "hits@1": share} for share in (0.8, 0.7, 0.6)]
        assert forgetting(initial) == pytest.approx(((0.8 - 0.7) + (0.8 - 0.6)) / 2)
        new = [{"hits@10": 0.5}, {}, {"hits@10": 0.3}]
        assert generalisation(new) == pytest.approx(0.4)
        assert generalisation([{}]) is None

    def test_the_summary_counts_seconds_of_increments_alone(self) -> None:
        first = {"initial": {"hits@10": 1.0, "hits@1": 1.0}, "new": {}, "seconds": 99.0, "added": 0}
        step = {
            "initial": {"hits@10": 0.5, "hits@1": 0.5},
            "new": {"hits@10": 0.25, "hits@1": 0.0},
            "seconds": 3.0,
            "added": 2,
        }
        row = summary("x", [first, {**step, "all_new": {"hits@10": 0.25}}])
        assert (row["forgetting@10"], row["generalisation@10"], row["seconds_per_document"]) == (0.5, 0.25, 1.5)


class TestVariants:
    def test_names_and_sides(self) -> None:
        grids = [
            {"docids.scheme": ["tfidf", "kmeans"], "update.method.name": ["none", "dome"]},
            {"update.method.name": ["dome"], "update.method.num_queries": [1, 4]},
        ]
        found = variants(config_of({"study": {"grids": grids}}))
        assert [each.name for each in found] == [
            "tfidf+none", "tfidf+dome", "kmeans+none", "kmeans+dome", "dome+num_queries=1", "dome+num_queries=4",
        ]  # fmt: skip
        assert found[0].base_name == "tfidf" and found[4].base_name == "base"
        assert "num_queries: 4" in update_overrides(config_of({}), found[5])[0]

    def test_settings_of_another_method_stay_behind(self) -> None:
        config = config_of(
            {
                "update": {"method": {"name": "dome", "labels": "hard"}},
                "study": {"grids": [{"update.method.name": ["memit"]}]},
            }
        )
        assert "labels" not in update_overrides(config, variants(config)[0])[0]

    @pytest.mark.parametrize(
        ("grid", "said"),
        [({"index": ["x"]}, "study.grids names 'index'"), ({"docids.scheme": []}, "gives 'docids.scheme' no value")],
    )
    def test_mistakes(self, grid: dict, said: str) -> None:
        with pytest.raises(UserError, match=said):
            variants(config_of({"study": {"grids": [grid]}}))

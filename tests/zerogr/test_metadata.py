"""Filters: what they may say, and the table that answers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr.errors import UserError
from zerogr.trie.conditions import Text, conditions_of, read_filter
from zerogr.trie.metadata import METADATA, Metadata, joined, table_of, write_table

KEYS = ["year", "language"]
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**53, 2**53 + 1, -(2**63), 2**63, 2**70]),
    st.sampled_from([-0.0, 0.5, 2.0**53]),
)
STRINGS = st.sampled_from(["", "a", "b", "2", "été", "\U0001f50d", "\uffff"])
SCALARS = st.one_of(NUMBERS, STRINGS, st.booleans())
VALUES = st.one_of(SCALARS, st.none(), st.just(["a"]), st.just({"a": 1}))
DOCUMENTS = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=8)
RANGES = st.one_of(
    st.fixed_dictionaries({}, optional={"gte": kind, "lte": kind}).filter(bool) for kind in (NUMBERS, STRINGS)
)
CONDITIONS = st.one_of(SCALARS, st.lists(SCALARS, min_size=1, max_size=3), RANGES)


def metadata_of(*parts: list[dict[str, Any]]) -> Metadata:
    tables = [table_of(pa.array(range(len(part)), pa.int64()), map(json.dumps, part), KEYS) for part in parts]
    return Metadata(joined(tables), KEYS)


def kind(value: Any) -> str:
    return (
        "boolean" if isinstance(value, bool) else "number" if isinstance(value, int | float) else type(value).__name__
    )


def holds(condition: Any, value: Any) -> bool:
    """The definition, value by value."""
    if isinstance(condition, dict):
        ends = condition.values()
        return all(kind(end) == kind(value) for end in ends) and condition.get("gte", value) <= value <= condition.get(
            "lte", value
        )
    given = condition if isinstance(condition, list) else [condition]
    return any(kind(each) == kind(value) and each == value for each in given)


class TestRows:
    @settings(deadline=None)
    @given(DOCUMENTS, DOCUMENTS, st.dictionaries(st.sampled_from(KEYS), CONDITIONS))
    def test_are_those_of_which_all_conditions_hold(
        self, first: list[dict[str, Any]], second: list[dict[str, Any]], wanted: dict[str, Any]
    ) -> None:
        """A document without a key, or with something else than a scalar there, matches no condition on it."""
        documents = [*first, *second]
        expected = [
            row
            for row, document in enumerate(documents)
            if all(key in document and holds(condition, document[key]) for key, condition in wanted.items())
        ]
        try:
            assert metadata_of(first, second).rows(wanted).tolist() == expected
        except UserError as error:  # a comparison that no document's value could pass
            assert "cannot be compared" in str(error) and not expected

    def test_what_a_command_line_writes_is_read_as_the_values_are(self) -> None:
        metadata = metadata_of([{"year": 2020}, {"year": "2020"}, {"year": 2021.5}, {"year": True}, {"language": "en"}])
        for written, rows in (("year=2020", [0, 1]), ("year>=2020.5", [2]), ("year=true,x", [3]), ("language<=f", [4])):
            assert metadata.rows(read_filter([written])).tolist() == rows

    @pytest.mark.parametrize(
        ("wanted", "reason"),
        [
            (
                {"yaer": 1},
                "filter has the key 'yaer'; the index can be filtered by year, language",
            ),
            ({"year": "2020"}, "filter.year cannot be compared with '2020': the documents' values are numbers"),
            ({"year": True}, "filter.year cannot be compared with True"),
            ({"year": [1, "x"]}, "filter.year cannot be compared with 'x'"),
            ({"language": {"lte": 3}}, "filter.language cannot be compared with 3: the documents' values are strings"),
        ],
    )
    def test_a_comparison_that_cannot_be_is_named(self, wanted: dict[str, Any], reason: str) -> None:
        with pytest.raises(UserError) as caught:
            metadata_of([{"year": 2020, "language": "en"}]).rows(wanted)
        assert str(caught.value).startswith(reason)

    def test_an_index_without_keys_says_so(self) -> None:
        with pytest.raises(UserError, match="filter has the key 'year', and the index has no keys to filter by"):
            Metadata(pa.table({"row_id": [0]}), []).rows({"year": 1})

    def test_a_key_that_no_document_has_matches_none(self) -> None:
        assert metadata_of([{}, {}]).rows({"year": 1}).tolist() == []


class TestTable:
    def test_is_small_and_the_same_when_it_is_read_again(self, tmp_path: Path) -> None:
        first, second = [{"year": 1, "language": "en"}] * 3, [{"language": language} for language in ("de", "en")]
        table = metadata_of(first, second).table
        write_table(table, tmp_path)
        read = pa.ipc.open_file(pa.memory_map(str(tmp_path / METADATA))).read_all()
        assert read.equals(table.unify_dictionaries().combine_chunks())
        assert read.column_names == ["row_id", "integer:year", "string:language"]
        assert read.column("string:language").chunk(0).dictionary.to_pylist() == ["en", "de"]

    def test_the_bytes_do_not_depend_on_the_shards(self, tmp_path: Path) -> None:
        documents = [{"year": year, "language": str(year % 2)} for year in range(5)]
        written = []
        for cut in (0, 2, 5):
            table = metadata_of(documents[:cut], documents[cut:]).table.drop_columns("row_id")
            write_table(table, tmp_path)
            written.append((tmp_path / METADATA).read_bytes())
        assert written[0] == written[1] == written[2]


class TestConditions:
    @pytest.mark.parametrize(
        ("wanted", "reason"),
        [
            (["year"], "filter is a list; it must map keys of metadata to a value, a list of values, or"),
            ({1: 2}, "filter has the key 1; keys of metadata are strings"),
            ({"year": None}, 'filter.year is None; it must be a value, a list of values, or {"gte": x, "lte": y}'),
            ({"year": [1, [2]]}, "filter.year.1 is [2]; it must be"),
            ({"year": []}, "filter.year is an empty list; give at least one value"),
            ({"year": {}}, "filter.year is a range with no end; it takes gte, lte or both"),
            ({"year": {"gt": 1}}, "filter.year is a range with gt; it takes gte, lte or both"),
            (
                {"year": {"gte": 1, "lte": "b"}},
                "filter.year must go from a number to a number or from a string to a string",
            ),
            ({"year": {"gte": False}}, "filter.year must go from a number to a number"),
            ({"year": float("nan")}, "filter.year is nan, which is no number that can be compared"),
            ({"year": {"lte": 10**400}}, "filter.year.lte is 1000"),
            ({"year": {"lte": "x" * 100, "gte": {}}}, "filter.year.gte is {}; it must be"),
        ],
    )
    def test_what_is_no_filter_is_named(self, wanted: Any, reason: str) -> None:
        with pytest.raises(UserError) as caught:
            conditions_of(wanted)
        assert str(caught.value).startswith(reason) and len(str(caught.value)) < 200

    def test_a_command_line_is_read(self) -> None:
        texts = ["year>=2000", "year<=2010", 'author="Lovelace, A.",Babbage', "language=", "a.b=c=d"]
        assert read_filter(texts) == {
            "year": {"gte": Text("2000"), "lte": Text("2010")},
            "author": [Text("Lovelace, A."), Text("Babbage")],
            "language": [Text("")],
            "a.b": [Text("c=d")],
        }

    @pytest.mark.parametrize(
        ("texts", "reason"),
        [
            (["year"], "the filter 'year' is none of key=value, key=a,b, key>=x and key<=x"),
            (["=2000"], "the filter '=2000' is none of"),
            (["year=1", "year=2"], "the filter 'year=2' is a second one of 'year'; give year=a,b, or one range"),
            (["year>=1", "year>=2"], "the filter 'year>=2' is a second one"),
            (["year>=1", "year=2"], "the filter 'year=2' is a second one"),
            (["year=1\r2"], "the values of the filter 'year=1\r2' are no line of CSV"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, texts: list[str], reason: str) -> None:
        with pytest.raises(UserError) as caught:
            read_filter(texts)
        assert str(caught.value).startswith(reason)

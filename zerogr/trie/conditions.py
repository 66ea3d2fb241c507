"""Conditions on documents' metadata: what a filter may say.

    {"language": "en"}                       the value
    {"language": ["en", "de"]}               one of the values
    {"year": {"gte": 2000, "lte": 2010}}     from the one to the other, both included

All conditions of a filter must hold. A value is a string, a number or a truth value, and is equal to none of another kind:
2020 is not "2020", and true is not 1. Strings are compared by their code points, so dates that ISO 8601 writes alike are in the
order of time.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zerogr.errors import UserError

Kind = Literal["string", "number", "boolean"]
SHAPES = 'a value, a list of values, or {"gte": x, "lte": y}'
_OPERATORS = {"=": None, ">=": "gte", "<=": "lte"}
_WRITTEN = re.compile(r"(.+?)(>=|<=|=)(.*)", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?P<fraction>\.\d+)?(?P<exponent>[eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Text:
    """A value as a command line has it: the string, and the number or the truth value that it spells."""

    text: str


Scalar = str | int | float | bool | Text
Conditions = Mapping[str, Any]
"""Key -> value, list of values, or range."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What the value of one key must be: one of some values, or in a range."""

    key: str
    values: tuple[Scalar, ...] = ()
    least: Scalar | None = None
    most: Scalar | None = None

    @property
    def is_range(self) -> bool:
        """Whether it has ends instead of values."""
        return self.least is not None or self.most is not None

    @property
    def scalars(self) -> list[Scalar]:
        """All that it compares with."""
        return [value for value in (*self.values, self.least, self.most) if value is not None]


def conditions_of(wanted: Conditions) -> list[Condition]:
    """Returns the conditions of a filter. Raises UserError for what is no filter; the key is named."""
    if not isinstance(wanted, Mapping):
        raise UserError(f"filter is a {type(wanted).__name__}; it must map keys of metadata to {SHAPES}")
    return [_condition(key, value) for key, value in wanted.items()]


def _condition(key: Any, value: Any) -> Condition:
    if not isinstance(key, str):
        raise UserError(f"filter has the key {key!r}; keys of metadata are strings")
    if isinstance(value, Mapping):
        ends = set(value)
        if not ends or ends - {"gte", "lte"}:
            raise UserError(f"filter.{key} is a range with {_listed(ends)}; it takes gte, lte or both")
        least, most = (_scalar(f"{key}.{end}", value[end]) if end in ends else None for end in ("gte", "lte"))
        kinds = {kind_of(end) for end in (least, most) if end is not None}
        if len(kinds) > 1 or "boolean" in kinds:
            raise UserError(f"filter.{key} must go from a number to a number or from a string to a string")
        return Condition(key, least=least, most=most)
    if isinstance(value, list | tuple):
        if not value:
            raise UserError(f"filter.{key} is an empty list; give at least one value")
        return Condition(key, tuple(_scalar(f"{key}.{place}", each) for place, each in enumerate(value)))
    return Condition(key, (_scalar(key, value),))


def _scalar(place: str, value: Any) -> Scalar:
    if not isinstance(value, Scalar):
        raise UserError(f"filter.{place} is {shown(value)}; it must be {SHAPES}")
    if isinstance(value, int | float) and not abs(value) < 2**1023:
        raise UserError(f"filter.{place} is {shown(value)}, which is no number that can be compared")
    return value


def kind_of(value: Scalar) -> Kind | None:
    """Returns the kind of a value; None where a command line leaves it open."""
    if isinstance(value, Text):
        return None
    return "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


def as_kind(value: Scalar, kind: Kind) -> Any:
    """Returns a value as one of a kind; None if it is none."""
    if not isinstance(value, Text):
        return value if kind_of(value) == kind else None
    if kind == "string":
        return value.text
    if kind == "boolean":
        return {"true": True, "false": False}.get(value.text)
    number = _NUMBER.fullmatch(value.text)
    if number is None:
        return None
    return float(value.text) if number["fraction"] or number["exponent"] else int(value.text)


def shown(value: Any) -> str:
    """Returns a value for a sentence, cut where it is long."""
    text = repr(value.text if isinstance(value, Text) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_filter(texts: Sequence[str]) -> dict[str, Any]:
    """Returns the filter that a command line spells: `key=value`, `key=a,b` (quoted as in CSV), `key>=x`, `key<=x`.

    Raises:
        UserError: A text is none of these, or two are at odds.
    """
    found: dict[str, Any] = {}
    for text in texts:
        parts = _WRITTEN.fullmatch(text)
        if parts is None:
            raise UserError(f"the filter '{text}' is none of key=value, key=a,b, key>=x and key<=x")
        key, end = parts[1], _OPERATORS[parts[2]]
        if end is None:
            new: Any = [Text(value) for value in _values(text, parts[3])]
        else:
            new = {end: Text(parts[3])}
        if key in found:
            if end is None or isinstance(found[key], list) or end in found[key]:
                raise UserError(f"the filter '{text}' is a second one of '{key}'; give {key}=a,b, or one range")
            new |= found[key]
        found[key] = new
    return found


def as_json(wanted: Conditions) -> dict[str, Any]:
    """Returns a filter that a command line spells with values that JSON has.

    Where nobody knows what kinds of values a key has, what spells a number is one, and so are `true` and `false` truth values.
    """

    def plain(value: Any) -> Any:
        if not isinstance(value, Text):
            return value
        kinds: tuple[Kind, ...] = ("number", "boolean", "string")
        return next(found for kind in kinds if (found := as_kind(value, kind)) is not None)

    return {
        key: {end: plain(each) for end, each in value.items()}
        if isinstance(value, Mapping)
        else [plain(e) for e in value]
        for key, value in wanted.items()
    }


def _values(text: str, listed: str) -> list[str]:
    try:
        return next(csv.reader([listed])) or [""]
    except csv.Error as error:
        raise UserError(f"the values of the filter '{text}' are no line of CSV: {error}") from None


def _listed(names: set[Any]) -> str:
    return ", ".join(sorted(map(str, names))) or "no end"

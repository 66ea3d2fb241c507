"""Sections whose settings live with their owner, chosen by its name: docid scheme, ranker, loss, method of updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from zerogr.config.base import LossSettings, MethodSettings, RankerSettings, SchemeSettings, Section
from zerogr.plugins import built_in, load_class


class Kind(NamedTuple):
    """One kind of owner."""

    what: str
    """It is, for a person."""
    key: str
    """Of the section, that holds the name."""
    package: str
    """Where our own are."""
    default: str


SCHEME = Kind("scheme", "scheme", "zerogr.docids.schemes", "keywords")
RANKER = Kind("ranker", "name", "zerogr.ranking", "likelihood")
METHOD = Kind("method", "name", "zerogr.editing.methods", "none")
LOSS = Kind("loss", "name", "zerogr.training.losses", "cross_entropy")


class UnknownOwnerError(ValueError):
    """There is no owner of that name."""

    def __init__(self, kind: Kind, name: str, reason: ValueError) -> None:
        super().__init__(f"{kind.key} is '{name}': {reason}")


class OwnedError(ValueError):
    """A section does not fit the settings of its owner."""

    def __init__(self, settings: type[Section], kind: Kind, error: ValidationError) -> None:
        super().__init__(str(error))
        self.settings, self.kind, self.error = settings, kind, error

    def owners_of(self, key: str) -> list[str]:
        """Returns the names of our own owners that have a setting."""
        return [name for name in built_in(self.kind.package) if key in settings_of(self.kind, name).model_fields]


def settings_of(kind: Kind, name: str) -> type[Section]:
    """Returns the settings of an owner."""
    settings: type[Section] = load_class(name, kind.package).Settings
    return settings


def _validator(kind: Kind) -> Callable[[Any], Any]:
    def validate(value: Any) -> Any:
        if isinstance(value, Section):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"must be a section with the key {kind.key}")
        name = value.get(kind.key, kind.default)
        if not isinstance(name, str):
            raise ValueError(f"{kind.key} must be a name, not {name!r}")
        try:
            settings = settings_of(kind, name)
        except ValueError as error:
            raise UnknownOwnerError(kind, name, error) from None
        try:
            return settings.model_validate({**value, kind.key: name})
        except ValidationError as error:
            raise OwnedError(settings, kind, error) from None

    return validate


SchemeSection = SerializeAsAny[Annotated[SchemeSettings, BeforeValidator(_validator(SCHEME))]]
RankerSection = SerializeAsAny[Annotated[RankerSettings, BeforeValidator(_validator(RANKER))]]
MethodSection = SerializeAsAny[Annotated[MethodSettings, BeforeValidator(_validator(METHOD))]]
LossSection = SerializeAsAny[Annotated[LossSettings, BeforeValidator(_validator(LOSS))]]


def ranking_of(value: dict[str, Any]) -> RankerSettings:
    """Returns the validated section `ranking` of a manifest."""
    settings: RankerSettings = _validator(RANKER)(value)
    return settings


def default_of(kind: Kind) -> Any:
    """Returns the section as it is where a configuration says nothing."""
    return settings_of(kind, kind.default)()

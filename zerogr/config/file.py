"""The configuration's file: YAML in, a validated tree out; and the documented default."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from zerogr.config.base import EncoderConfig, EngineConfig, SchemeSettings, Section, TunedConfig
from zerogr.config.owned import LOSS, METHOD, RANKER, SCHEME, OwnedError, UnknownOwnerError, settings_of
from zerogr.config.tree import Config
from zerogr.errors import UserError
from zerogr.plugins import built_in

_OWNED = {"docids": SCHEME, "ranking": RANKER, "training.loss": LOSS, "update.method": METHOD}
"""Sections whose keys depend on a name."""
_SECTIONS = {name for name in Config.model_fields if isinstance(getattr(Config(), name), Section)}


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML's own reader takes the last one, silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Returns the mapping of a node."""
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in seen:
                raise yaml.YAMLError(
                    f"the key '{key}' stands in line {seen[key]} and again in line {line}; leave one out"
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


def load_config(path: str | None, overrides: list[str] | None = None) -> Config:
    """Returns the validated configuration of a YAML file with `key.sub=value` overrides on top.

    Raises:
        UserError: The file is missing or not YAML; a key is unknown; a value is not allowed.
    """
    tree: Any = {}
    if path is not None:
        try:
            tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader) or {}  # noqa: S506 (a SafeLoader)
        except FileNotFoundError:
            raise UserError(
                f"there is no config file '{path}'; `zerogr config > {path}` writes a documented one"
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"'{path}' cannot be read as YAML: {' '.join(str(error).split())}") from None
        if not isinstance(tree, dict):
            raise UserError(
                f"'{path}' holds a {type(tree).__name__}; it must be a mapping with the keys of `zerogr config`"
            )
        # A section whose lines are all commented out is read as null.
        tree = {key: {} if value is None and key in _SECTIONS else value for key, value in tree.items()}
    return config_of(tree, overrides)


def config_of(tree: dict[str, Any], overrides: list[str] | None = None) -> Config:
    """Returns the validated configuration of a tree, that of a manifest for one, with overrides; raises as `load_config`."""
    texts = dict(_apply_override(tree, override) for override in overrides or [])
    try:
        Config.model_validate(tree)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_context=False):
            key = ".".join(map(str, fault["loc"]))
            if fault["type"] == "string_type" and fault["input"] is not None and key in texts:
                set_key(tree, key, texts[key], "--set")  # a text key: 2024 and yes are what they are
    return _with_absolute_paths(validate_config(tree))


def _with_absolute_paths(config: Config) -> Config:
    """Returns the configuration as a worker with another working directory can read it."""

    def absolute(value: str | None) -> str | None:
        return value if value is None or ":" in value else os.path.abspath(os.path.expanduser(value))

    def changed(section: Section, *keys: str) -> Section:
        return section.model_copy(update={key: absolute(getattr(section, key)) for key in keys})

    def with_model(section: Section, key: str = "model") -> Section:  # it may be a name on a hub, and no folder
        name = getattr(section, key)
        return changed(section, key) if name and os.path.isdir(os.path.expanduser(name)) else section

    def with_models(scheme: SchemeSettings) -> Section:
        kinds = {EngineConfig: "model", EncoderConfig: "encoder", TunedConfig: "model"}
        section: Section = changed(scheme, "judged") if isinstance(scheme, TunedConfig) else scheme
        for key in dict.fromkeys(key for kind, key in kinds.items() if isinstance(scheme, kind)):
            section = with_model(section, key)
        return section

    teacher = {
        "out": absolute(config.distil.out),
        "tasks": [changed(task, "source") for task in config.distil.tasks],
    }
    tuning = {
        "out": absolute(config.tuning.out),
        "teacher": absolute(config.tuning.teacher),
        "tasks": [changed(task, "source", "judged") for task in config.tuning.tasks],
    }
    pretraining = {key: absolute(getattr(config.pretraining, key)) for key in ("out", "source")}
    return config.model_copy(
        update={
            "index": absolute(config.index),
            "corpus": changed(config.corpus, "source", "keep_judged"),
            "docids": with_models(config.docids),
            "queries": with_model(config.queries),
            "retriever": with_model(config.retriever),
            "evaluation": changed(config.evaluation, "dataset"),
            "training": changed(config.training, "judged"),
            "negatives": with_model(changed(config.negatives, "retriever"), "teacher"),
            "ablation": changed(config.ablation, "out"),
            "study": changed(config.study, "out"),
            "compute": config.compute.model_copy(update={"reuse": [absolute(uri) for uri in config.compute.reuse]}),
            "distil": with_model(config.distil).model_copy(update=teacher),
            "tuning": with_model(config.tuning).model_copy(update=tuning),
            "pretraining": with_model(config.pretraining).model_copy(update=pretraining),
        }
    )


def validate_config(tree: dict[str, Any]) -> Config:
    """Returns the configuration of a parsed tree.

    Raises:
        UserError: One sentence that names the path, the value seen, what is allowed, or the nearest right key.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _apply_override(tree: dict[str, Any], override: str) -> tuple[str, str]:
    """Sets the key of an override to what YAML makes of its text; returns key and text."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override}: write it as key.sub=value, for example --set training.num_epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(
            f"--set {override}: '{text}' is not a YAML value; quote it, for example --set 'instruction=\"Find: it\"'"
        ) from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", text.strip()):
        value = float(value)  # YAML 1.1 reads 1e-4, which has no dot, as a string
    is_flow = text.lstrip().startswith(("{", "[", "'", '"'))
    if not is_flow and (isinstance(value, dict) or "#" in text):
        value = text.strip()  # YAML reads `pystdlib:` and `Find: it` as mappings, and takes ` #1` for a comment
    set_key(tree, key.strip(), value, f"--set {override}")
    return key.strip(), text.strip()


def set_key(tree: dict[str, Any], key: str, value: Any, place: str) -> None:
    """Sets `key.sub` of a parsed tree; `place` begins the error's sentence.

    Raises:
        UserError: Something above the key is no section.
    """
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UserError(f"{place}: '{parent}' is a value, not a section")
    tree[last] = value


def drop_foreign(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    """Leaves out of a tree the settings that mean nothing to the owners which `changes` (key -> value) choose."""
    for path, kind in _OWNED.items():
        name = changes.get(f"{path}.{kind.key}")
        if not isinstance(name, str):
            continue
        section = tree
        for part in path.split("."):
            section = section.get(part, {})
        try:
            known = settings_of(kind, name).model_fields
        except ValueError:
            continue  # what is wrong with the name is said when the tree is validated
        for key in [key for key in section if key not in known]:
            del section[key]


def _explain(error: ValidationError, section: type[Section] = Config, above: tuple[str, ...] = ()) -> str:
    """Returns one sentence of what is wrong with a section; `above` is the path to it."""
    sentences = []
    for item in error.errors():
        places = [str(part) for part in item["loc"]]
        path = ".".join([*above, *places]) or "the configuration"
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, OwnedError):
            sentences.append(_explain_owned(cause, (*above, *places)))
        elif isinstance(cause, UnknownOwnerError):
            sentences.append(f"{path}.{cause}")
        elif item["type"] == "extra_forbidden":
            *parents, wrong = places
            names = list(_section_at(parents, section).model_fields)
            near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
            here = ".".join([*above, *parents])
            hint = (
                f"did you mean '{here}{'.' if here else ''}{near[0]}'?"
                if near
                else f"allowed there: {', '.join(names)}"
            )
            sentences.append(f"there is no key '{path}'; {hint}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            seen = "" if item["type"] in ("value_error", "missing") else f" is {item['input']!r}"
            sentences.append(f"{path}{seen}: {reason[0].lower()}{reason[1:]}")
    return "; ".join(sentences)


def _explain_owned(cause: OwnedError, above: tuple[str, ...]) -> str:
    """Returns the same of a section whose owner has other settings."""
    [first, *_] = cause.error.errors()
    if first["type"] == "extra_forbidden" and (owners := cause.owners_of(name := str(first["loc"][0]))):
        path = ".".join(above)
        return (
            f"'{path}.{name}' is a setting of {path}.{cause.kind.key} {' and '.join(owners)}; "
            f"the one chosen has {', '.join(cause.settings.model_fields)}"
        )
    return _explain(cause.error, cause.settings, above)


def _section_at(path: list[str], section: type[Section]) -> type[Section]:
    for part in path:
        if not part.isdigit():
            annotation: Any = section.model_fields[part].annotation
            section = next(iter(get_args(annotation)), annotation)  # what a list is a list of
    return section


def default_yaml() -> str:
    """Returns the documented default configuration file; of schemes, rankers and losses the others follow, commented out."""
    lines = ["# The configuration of ZeroGR. Every key is optional; what stands here is the default."]
    for name, field in Config.model_fields.items():
        default = getattr(Config(), name)
        lines += ["", f"# {field.description}"]
        if not isinstance(default, Section):
            lines.append(f"{name}: {_yaml_value(default)}")
            continue
        lines += [f"{name}:", *_section_lines(default, name)]
        for settings in _other_variants(name):
            lines += ["", f"# or {name}:", *(f"#{line}" for line in _section_lines(settings, name))]
    return "\n".join(lines) + "\n"


def _section_lines(section: Section, path: str) -> list[str]:
    lines = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if not isinstance(value, Section):
            lines += [f"  # {field.description}", f"  {key}: {_yaml_value(value)}"]
            continue
        first, *others = [_one_line(key, variant) for variant in (value, *_other_variants(f"{path}.{key}"))]
        lines += [f"  # {field.description}", f"  {first}", *(f"  # or {other}" for other in others)]
    return lines


def _one_line(key: str, variant: Section) -> str:
    what_it_is = type(variant).model_fields["name"].description
    return f"{key}: {_yaml_value(variant.model_dump(mode='json'))}  # {what_it_is}"


def _other_variants(path: str) -> list[Section]:
    """Returns the settings of the other owners that the section at `path` could be of."""
    kind = _OWNED.get(path)
    names = built_in(kind.package) if kind else []
    return [settings_of(kind, name)() for name in names if kind and name != kind.default]


def _yaml_value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")

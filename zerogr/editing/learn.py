"""Teaching a version's new documents to its retriever: everything a method needs is gathered, what it changed is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zerogr.editing.existing import chat_of
from zerogr.editing.method import Change, New, Setting, load_method
from zerogr.editing.rehearsal import hand_on, kept, new_queries
from zerogr.editing.sample import Known
from zerogr.editing.states import STATES, States
from zerogr.editing.statistics import Statistics
from zerogr.editing.update import Update
from zerogr.index.index import Index
from zerogr.index.stage import STATISTICS
from zerogr.index.versions import Version
from zerogr.llm.chat import SCORER, SETTINGS_FILE
from zerogr.llm.models import load_model, load_tokenizer
from zerogr.search.changes import TERMS, apply_changes, read_changes, write_changes
from zerogr.store import cache, storage
from zerogr.training.checkpoints import CHECKPOINTS
from zerogr.training.choices import Choices
from zerogr.training.examples import Examples
from zerogr.training.normalisation import NORMALISATIONS
from zerogr.trie.opened import open_trie

VERSION = 1


def learn_inputs(update: Update) -> dict[str, Any]:
    """Returns what an update's retriever is made from."""
    settings = update.config.update
    return {
        "before": update.before.number,
        "trie": update.index.require("trie").fingerprint,
        "queries": update.index.require("queries").fingerprint,
        "method": settings.method.model_dump(mode="json"),
        "kept_queries": settings.kept_queries,
        "seed": update.config.seed,
        "version": VERSION,
    }


def learn(update: Update, version: Version) -> dict[str, Any]:
    """Runs the method and publishes what it changed; returns the stage's counts.

    Args:
        update: With its documents, queries and trie done.
        version: What the update makes, with the retriever of the version before.
    """
    config, root, before = update.config, update.root, update.before
    model, _ = load_model(str(cache.local_folder(root.path(before.retriever))), dtype="float32")
    terms = apply_changes(model, root, before)
    chat = chat_of(root, before)
    trie = open_trie(root, version).whole()
    choices = Choices(trie, chat.end_token_id)
    needed = choices if NORMALISATIONS[config.training.normalise].needs_choices else None
    known = new_queries(update.index, config)
    old = kept(root, config, before, config.update.kept_queries).without(update.request.remove)

    def tokenised(queries: Sequence[Known]) -> Examples:
        return Examples.build([each.example for each in queries], chat, needed)

    settings = config.update.method
    setting = Setting(
        model=model,
        chat=chat,
        trie=trie,
        choices=choices,
        terms=terms,
        states=_states(update),
        statistics=_statistics(update) if settings.needs_statistics else None,
        config=config,
        tokenised=tokenised,
        checkpoints=update.index.path("work/training", CHECKPOINTS),
    )
    new = New(known=known, examples=tokenised(known), old=old)
    change = load_method(settings).update(setting, new)
    _publish(update, change, model)
    hand_on(root, config, version, config.update.kept_queries)
    storage.delete(update.index.path("work/training"))
    return {"method": settings.name, "examples": len(known), **change.report}


def learnt(update: Update, version: Version) -> Version:
    """Returns the version with the retriever that `learn` has published."""
    files = storage.list_files(update.index.path("retriever"))
    folder = f"{update.folder}/retriever"
    has_statistics = bool(storage.list_files(update.index.path(STATISTICS.name)))
    statistics = f"{update.folder}/{STATISTICS.name}" if has_statistics else version.statistics
    found = replace(version, statistics=statistics, kept=update.number)
    if files:
        has_states = bool(storage.list_files(update.index.path(STATES)))
        found = replace(found, states=f"{update.folder}/{STATES}" if has_states else None)
    if "config.json" in files:
        has_terms = any(name.startswith(f"{TERMS}/") for name in files)
        return replace(found, retriever=folder, changes=folder if has_terms else None)
    return replace(found, changes=folder) if files else found


def _statistics(update: Update) -> Statistics | None:
    root, before = update.root, update.before
    folder = before.statistics or STATISTICS.name
    if not storage.list_files(root.path(folder)):
        return None
    return Statistics.load(cache.local_folder(root.path(folder)))


def _states(update: Update) -> States:
    folder = update.before.states
    return States() if folder is None else States.load(cache.local_folder(update.root.path(folder)))


def _publish(update: Update, change: Change, model: Any) -> None:
    """Writes the whole model where most of it has changed, else the tensors that have, with those of earlier updates."""
    uri, root, before = update.index.path("retriever"), update.root, update.before
    parameters = dict(model.named_parameters())
    num_changed = sum(parameters[name].numel() for name in change.deltas)
    tensors, terms = read_changes(root, before)
    terms = terms if change.terms is None else change.terms
    if num_changed > sum(parameter.numel() for parameter in parameters.values()) // 2:
        with storage.staging_folder(uri) as folder:
            _write_model(root, before, model, folder)
            if len(terms):
                terms.save(folder / TERMS)
    elif change.deltas or len(terms):
        tensors |= {name: parameters[name].detach() for name in change.deltas}
        write_changes(uri, tensors, terms)
    if change.statistics is not None:
        with storage.staging_folder(update.index.path(STATISTICS.name)) as folder:
            change.statistics.save(folder)
    if change.states is not None:
        with storage.staging_folder(update.index.path(STATES)) as folder:
            change.states.save(folder)


def _write_model(root: Index, before: Version, model: Any, folder: Path) -> None:
    source = cache.local_folder(root.path(before.retriever))
    dtype = getattr(torch, str(storage.read_json(str(source / "config.json")).get("dtype", "float32")))
    model.to(dtype).save_pretrained(folder, safe_serialization=True)
    load_tokenizer(str(source)).save_pretrained(folder)
    (folder / SETTINGS_FILE).write_bytes((source / SETTINGS_FILE).read_bytes())
    if (source / SCORER).exists():  # or the index could not be re-ranked any more
        (folder / SCORER).write_bytes((source / SCORER).read_bytes())

"""What updates have changed of a retriever: tensors that replace the model's own, and terms added to single choices."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file, save_file

from zerogr.decoding.terms import Terms
from zerogr.index.index import Index
from zerogr.index.versions import Version
from zerogr.store import cache, storage

TENSORS, TERMS = "changed.safetensors", "terms"
"""In the folder of a version's changes."""


def read_changes(index: Index, version: Version) -> tuple[dict[str, torch.Tensor], Terms]:
    """Returns the changed tensors (fp32) by name, and the terms; empty where nothing was changed."""
    if version.changes is None:
        return {}, Terms()
    folder = cache.local_folder(index.path(version.changes))
    tensors = load_file(folder / TENSORS) if (folder / TENSORS).exists() else {}
    return tensors, Terms.load(folder / TERMS) if (folder / TERMS).is_dir() else Terms()


def write_changes(uri: str, tensors: dict[str, torch.Tensor], terms: Terms) -> None:
    """Publishes the changes of a version."""
    with storage.staging_folder(uri) as folder:
        if tensors:
            save_file({name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
        if len(terms):
            terms.save(folder / TERMS)


def apply_changes(model: Any, index: Index, version: Version) -> Terms:
    """Puts a version's changed tensors into its model, and returns its terms."""
    tensors, terms = read_changes(index, version)
    if tensors:
        found = model.load_state_dict(tensors, strict=False)
        assert not found.unexpected_keys, found.unexpected_keys
    return terms

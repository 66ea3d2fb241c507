"""What an update that learns hands on to the next: its sample of old queries, and their states if no weight has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.jobs.updating import update
from zerogr import Retriever
from zerogr.config.file import config_of
from zerogr.decoding.scoring import Request as Scored
from zerogr.editing.rehearsal import kept
from zerogr.editing.sample import Known
from zerogr.editing.states import States
from zerogr.index.index import Index
from zerogr.index.versions import Version


def test_the_sample_is_the_one_that_the_shards_give(place: Path) -> None:
    root = Index(str(place / "index"))
    config = config_of({**root.manifest()["config"], "index": root.uri})

    def sample(number: int, **changed: Any) -> list[Known]:
        return list(kept(root, config, replace(Version.of(root.manifest()), **changed), number))

    update(place, add="new-0.jsonl", method="certificate")
    update(place, remove=("chess-7", "bicycles-0"))
    update(place, add="new-1.jsonl", method="none")
    assert sample(4096) == sample(4096, kept=None)
    update(place, add="new-0.jsonl", method="certificate")
    assert Version.of(root.manifest()).kept == 4
    assert sample(4096) == sample(4096, kept=None)
    found = {known.doc_id for known in sample(4096)}
    assert {"bicycles-0", "bicycles-1"} < found and "chess-7" not in found
    assert sample(3) == sample(3, kept=None), "a sample of another size is read anew"


def test_states_are_those_of_the_model(place: Path) -> None:
    root = Index(str(place / "index"))
    update(place, add="new-0.jsonl", method="certificate")
    first = Version.of(root.manifest())
    update(place, remove=("chess-7",))
    assert Version.of(root.manifest()).states == first.states
    update(place, add="new-1.jsonl", method="certificate")
    version = Version.of(root.manifest())
    assert version.states is not None and version.states != first.states
    states = States.load(root.path(version.states))
    config = config_of({**root.manifest()["config"], "index": root.uri})
    known = [each for each in kept(root, config, version, 4096) if each.doc_id in ("bicycles-1", "bicycles-0")]
    keys = np.array([each.key for each in known])
    assert known and not len(states.missing(keys))
    writer = Retriever.load(root.uri, device="cpu").writer
    prompts = [(writer.chat.prefix(each.example.instruction), writer.chat.query(each.example.query)) for each in known]
    scorer = writer.model.start(prompts)
    expected = scorer.hidden([Scored(query, (), np.empty(0, np.int64)) for query in range(len(known))])
    torch.testing.assert_close(states.of(keys), expected.float(), atol=1e-4, rtol=1e-4)

    update(place, add="new-2.jsonl", method="memit")
    assert Version.of(root.manifest()).states is None

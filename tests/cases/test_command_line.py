"""Every case under the command that met it: the rows that went in come out, and nobody sees a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main
from tests.published import rows

INPUTS = Path(__file__).parent / "inputs"
CORPORA = (
    ("01-folder-named-like-a-file/corpus.parquet", "auto", ["a", "b"], []),
    ("02-tsv-raw-quotation-marks/docs.tsv", "auto", ["1", "2", "3", "4", "5"], []),
    ("02-tsv-raw-quotation-marks/docs-unbalanced.tsv", "auto", ["1", "2", "3", "4"], []),
    ("03-parquet-binary-text/docs.parquet", "auto", ["a", "b"], []),
    ("03-parquet-binary-text/keys.parquet", "auto", ["a", "b"], []),
    ("03-parquet-binary-text/one-bad.parquet", "auto", ["a", "c"], ["invalid_utf8"]),
    ("11-nan-in-a-title/docs.jsonl", "auto", ["a", "b", "c"], []),
    ("11-nan-in-a-title/docs.parquet", "auto", ["a", "b"], []),
    ("12-format-said-aloud/docs.json", "jsonl", ["a"], []),
    ("12-format-said-aloud/DOCS.CSV", "csv", ["a"], []),
    ("12-format-said-aloud/docs.ndjson.gz", "auto", ["a"], []),
    ("15-first-row-lacks-a-column/docs.jsonl", "auto", ["b", "c"], ["empty_document"]),
)


@pytest.mark.parametrize(("source", "format", "documents", "rejected"), CORPORA, ids=[case[0] for case in CORPORA])
def test_corpora(
    tmp_path: Path,
    source: str,
    format: str,
    documents: list[str],
    rejected: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.yaml").write_text("docids: {scheme: tfidf}\nqueries: {num_queries_per_document: 0}\n")
    index = str(tmp_path / "index")
    changes = [
        f"index={index}",
        f"corpus.source={INPUTS / source}",
        f"corpus.format={format}",
        "compute.max_rejected_fraction=0.5",
    ]
    command = ["corpus", str(tmp_path / "config.yaml"), *(part for change in changes for part in ("--set", change))]
    assert main(command) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert [row["doc_id"] for row in rows(index, "corpus")] == documents
    assert [row["reason"] for row in rows(index, "rejected")] == rejected


@pytest.mark.integration
@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("04-integer-query-ids", "none of the 1 judged queries has a relevant document"),
        ("05-packed-beir-queries", "none of the 1 judged queries has a relevant document"),
        ("05-packed-beir-queries/packed-qrels", "none of the 1 judged queries has a relevant document"),
        ("10-foreign-run-with-percent-signs", "none of the 1 judged queries has a relevant document"),
        ("14-grades-written-as-floats", "none of the 1 judged queries has a relevant document"),
        ("14-grades-written-as-floats/half", "the score must be a whole number, not '0.5'"),
    ],
)
def test_collections(tiny_index: str, folder: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read: what stops the command is that this index has other documents, or a grade between two."""
    assert main(["evaluate", tiny_index, "--dataset", str(INPUTS / folder)]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error

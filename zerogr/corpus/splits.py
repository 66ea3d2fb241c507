"""Splits: a large source is cut into parts that are read by themselves, and whose rows, one part after the other, are its rows.

What may be cut is a matter of the format:

    JSON Lines              between lines: a range of bytes has the lines that begin in it
    CSV and TSV             the same, of files in which quotation marks do nothing. Where they quote, a line break may stand
                            inside a cell, which only reading from the first row on tells: such a file is one part
    Parquet                 between row groups
    packed files (.gz)      not at all: what is packed can only be read from its beginning
    `pystdlib:`             not at all

Small files that follow each other are one split. A source below `SMALL_BYTES` is one as a whole, which is read in the driver
as one stream, because starting processes would take longer. How a source is cut depends on its files' names and sizes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from zerogr.config.tree import CorpusConfig
from zerogr.corpus.document import Document, Rejected
from zerogr.corpus.readers import detect_format, parquet_file, read_file, source_files
from zerogr.corpus.separated import quotes_nothing
from zerogr.corpus.streams import Place, Span
from zerogr.errors import UserError
from zerogr.store import storage

SPLIT_BYTES = 8 * 2**20
MOST_SPLITS = 1024
"""Of a source that can be cut anywhere: splits of a large one are larger."""
SMALL_BYTES = 64 * 2**20
"""About ten seconds of one core."""
PACKED = 3
"""A byte of a packed file, or of a Parquet file, counts for so many."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the source, as it was when the source was cut."""

    uri: str
    num_bytes: int
    tag: str
    """Tells its content from another's of the same size; see `storage.version_tag`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a part of one."""

    file: int
    """Its number in `Splits.files`."""
    span: Span | None = None
    """None = the whole file."""


@dataclass(frozen=True, slots=True)
class Splits:
    """A source, cut."""

    kind: str
    """Its format."""
    files: list[SourceFile]
    pieces: list[list[Piece]]
    """Of every split, in the source's order."""
    weights: list[int]
    """Of every split, in bytes, those of packed files counted `PACKED` times."""

    def as_json(self) -> dict[str, Any]:
        """Returns what `of_json` reads."""
        return asdict(self)

    @classmethod
    def of_json(cls, entry: dict[str, Any]) -> Splits:
        """Returns what `as_json` wrote."""
        pieces = [
            [Piece(piece["file"], piece["span"] and Span(*piece["span"])) for piece in split]
            for split in entry["pieces"]
        ]
        return cls(entry["kind"], [SourceFile(**file) for file in entry["files"]], pieces, entry["weights"])

    def read(self, piece: Piece, config: CorpusConfig, place: Place) -> Iterator[Document | Rejected]:
        """Yields the rows of a piece; `place` counts its lines or rows.

        Raises:
            UserError: The file is not what it was when the source was cut, or as for `zerogr.corpus.readers.read_corpus`.
        """
        self.check(piece)
        yield from read_file(self.files[piece.file].uri, self.kind, config, place, piece.span)
        self.check(piece)

    def check(self, piece: Piece) -> None:
        """Raises UserError if a piece's file is not what it was when the source was cut."""
        file = self.files[piece.file]
        try:
            now = _seen(file.uri)
        except FileNotFoundError:
            raise UserError(
                f"'{file.uri}' is not to be found where the corpus is read; put it where every node finds it, or set "
                "compute.num_reading_workers to 1 to read it here"
            ) from None
        if now != file:
            raise UserError(
                f"'{file.uri}' has changed since the source was cut into parts: {file.num_bytes} bytes ({file.tag}) then, "
                f"{now.num_bytes} ({now.tag}) now; leave the source alone while it is read, and run again with --rebuild corpus"
            )

    def name(self, piece: Piece) -> str:
        """Returns the name of a piece's file, as it stands in locations."""
        return Place.in_file(self.files[piece.file].uri).name


def cut(config: CorpusConfig, *, split_bytes: int | None = None) -> Splits:
    """Returns the splits of a source.

    Args:
        config: Names it.
        split_bytes: Of one split, about; None = as large as the source wants it.

    Raises:
        UserError: The source is missing or of unknown format, or a file is none of its format.
    """
    kind = detect_format(config)
    if kind == "pystdlib":
        return Splits(kind, [], [[]], [0])
    files = list(storage.for_each(_seen, source_files(config)))
    weights = [file.num_bytes * (PACKED if kind == "parquet" or _is_packed(file) else 1) for file in files]
    if split_bytes is None:
        split_bytes = max(SPLIT_BYTES, sum(weights) // MOST_SPLITS) if sum(weights) > SMALL_BYTES else sum(weights)
    splits = Splits(kind, files, [], [])
    for number, (file, weight) in enumerate(zip(files, weights, strict=True)):
        spans = _spans(file, kind, config, -(-weight // max(split_bytes, 1)))
        pieces = [Piece(number, span) for span in spans] or [Piece(number)]
        for piece in pieces:
            _append(splits, piece, weight // len(pieces), split_bytes)
    return splits


def _append(splits: Splits, piece: Piece, weight: int, split_bytes: int) -> None:
    if splits.pieces and splits.weights[-1] + weight <= split_bytes:
        splits.pieces[-1].append(piece)
        splits.weights[-1] += weight
    else:
        splits.pieces.append([piece])
        splits.weights.append(weight)


def _spans(file: SourceFile, kind: str, config: CorpusConfig, number: int) -> list[Span]:
    """Returns `number` parts of a file, or fewer; none of a file that is not to be cut."""
    if number < 2 or _is_packed(file) or (kind == "csv" and not quotes_nothing(file.uri, config)):
        return []
    length = file.num_bytes
    if kind == "parquet":
        with parquet_file(file.uri) as opened:
            length = opened.num_row_groups
    number = min(number, length)
    bounds = [length * i // number for i in range(number + 1)] if number else []
    return [Span(begin, end) for begin, end in zip(bounds, bounds[1:], strict=False)]


def _is_packed(file: SourceFile) -> bool:
    return file.uri.lower().endswith(".gz")


def _seen(uri: str) -> SourceFile:
    num_bytes, tag = storage.state_of(uri)
    return SourceFile(uri, num_bytes, tag)

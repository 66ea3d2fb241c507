"""Graded pairs from links: what a sentence of an article is about, and what is near to that, in four grades.

    4   the article that the sentence is from
    3   what it says to see also; its references, if it says nothing of that kind
    2   what its first section links to
    1   what it links to elsewhere

A query is a sentence of an article's first section, drawn by the seed; the answers are docids made of titles, as the scheme
title makes them, and where two titles are the same the rules of docids tell them apart. An article that is linked more than
once has its highest grade. Links to itself and to what is not there do not count.

Source: GR2P, arXiv 2409.18409, which pre-trains on Wikipedia in this way.

Cost: one pass over the source. Of every article its id, its title and `NUM_OWN` words are held, about a kilobyte; of those that
are asked about also sentences and links.
"""

from __future__ import annotations

import heapq
import logging
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa

from zerogr.config.tree import Config
from zerogr.corpus.articles import Article, articles_hash, read_articles
from zerogr.corpus.document import Rejected
from zerogr.docids.resolve import content_of, resolve
from zerogr.docids.scheme import Context
from zerogr.docids.schemes.title import Title, TitleSettings
from zerogr.errors import UserError
from zerogr.index.index import Index
from zerogr.progress import Progress
from zerogr.seeds import seed_of
from zerogr.text.words import is_topical, words

logger = logging.getLogger(__name__)

VERSION = 1
HIGHEST_GRADE = 4
NUM_OWN = 8
"""Words of an article's first section that are kept to tell it from others with the same title."""
_FEWEST_WORDS = 3
"""A sentence with fewer asks for nothing."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


class GradedQuery(NamedTuple):
    """A query and what is relevant to it."""

    query: str
    relevant: list[tuple[str, int]]
    """Docid and grade, the article's own first, no docid twice."""


class _Asked(NamedTuple):
    """An article with queries."""

    row: int
    article: Article
    """Without its text."""
    queries: list[str]


@dataclass(slots=True)
class _Corpus:
    """The articles, by row: their number in the source."""

    row_of: dict[str, int] = field(default_factory=dict)
    """By id."""
    row_titled: dict[str, int] = field(default_factory=dict)
    """By folded title; of several the first."""
    titles: list[str] = field(default_factory=list)
    """What their docids would be, were no other's the same."""
    content: list[str] = field(default_factory=list)
    """What stands for title and text."""
    own: list[list[str]] = field(default_factory=list)
    """Words that tell an article from others."""
    asked: list[_Asked] = field(default_factory=list)

    def rows(self, names: list[str]) -> list[int]:
        """Returns the rows of the articles that are there."""
        found = (self.row_of.get(name, self.row_titled.get(_folded(name))) for name in names)
        return [row for row in found if row is not None]


def graded_inputs(config: Config) -> dict[str, Any]:
    """Returns what the pairs are made from.

    Raises:
        UserError: The source is missing.
    """
    settings = config.pretraining
    keys = ("num_queries_per_article", "max_articles", "max_links")
    return {
        "pairs.version": VERSION,
        "instruction": config.instruction,
        "pretraining.source": articles_hash(settings.source),
        **{f"pretraining.{key}": getattr(settings, key) for key in keys},
    }


def graded_queries(config: Config) -> Iterator[GradedQuery]:
    """Yields every query of every article that is asked about, in the order of the source.

    Raises:
        UserError: The source cannot be read, too many of its rows are no articles, or nothing that could be asked about
            links to anything else.
    """
    settings = config.pretraining
    corpus = _read(config)
    scheme = Title(TitleSettings(), Context(Index(settings.out), config.seed))
    text = pa.list_(pa.string())
    candidates = pa.array([[title] for title in corpus.titles], text)
    docids = resolve(corpus.content, candidates, pa.array(corpus.own, text), scheme).docids
    graded = [(asked, _graded(corpus, asked)) for asked in corpus.asked]
    grades = Counter(grade for _, rows in graded for grade in rows.values())
    if not grades.keys() - {HIGHEST_GRADE}:
        raise UserError(
            f"pretraining.source '{settings.source}': of {len(docids)} articles none with a first section links to others; "
            "give a corpus with `links` in its `sections`, `see_also` or `references`, as `zerogr pretrain --help` shows"
        )
    counted = ", ".join(f"{count:,} of grade {grade}" for grade, count in sorted(grades.items(), reverse=True))
    logger.info("%d of %d articles are asked about; documents: %s", len(graded), len(docids), counted)
    for asked, rows in graded:
        draw = random.Random(seed_of(config.seed, "links", asked.article.doc_id))
        chosen = sorted(rows, key=lambda row: (-rows[row], draw.random()))[: settings.max_links + 1]
        relevant: dict[str, int] = {}
        for row in chosen:
            relevant.setdefault(docids[row], rows[row])  # true duplicates share a docid: the higher grade counts
        for query in asked.queries:
            yield GradedQuery(query, list(relevant.items()))


def _read(config: Config) -> _Corpus:
    settings, limit = config.pretraining, config.compute.max_rejected_fraction
    corpus = _Corpus()
    rejected: list[Rejected] = []
    asked: list[tuple[int, int, _Asked]] = []  # a heap whose root is the worst choice so far
    progress = Progress("articles", unit="articles")
    for article in read_articles(settings.source):
        if isinstance(article, Article):
            article = _fault(article, corpus) or article
        if isinstance(article, Rejected):
            rejected.append(article)
            continue
        row = _add(corpus, article)
        if queries := _queries(article, settings.num_queries_per_article, config.seed):
            entry = (-seed_of(config.seed, "asked", article.doc_id), row, _Asked(row, _bare(article), queries))
            if settings.max_articles is None or len(asked) < settings.max_articles:
                heapq.heappush(asked, entry)
            else:
                heapq.heappushpop(asked, entry)
        progress.advance(1)
    progress.close()
    if rejected:
        first, num_rows = rejected[0], len(rejected) + len(corpus.titles)
        found = f"{len(rejected)} of {num_rows} rows of pretraining.source '{settings.source}' are no articles"
        found += f" (the first: {first.doc_id}, {first.reason}, {first.detail})"
        if len(rejected) > limit * num_rows:
            raise UserError(
                f"{found}, more than compute.max_rejected_fraction = {limit}; mend them, or raise the limit"
            )
        logger.warning("%s; they are left out", found)
    corpus.asked = [each for _, _, each in sorted(asked, key=lambda entry: entry[1])]
    return corpus


def _fault(article: Article, corpus: _Corpus) -> Rejected | None:
    """Returns why an article cannot be used, if it cannot."""
    if article.doc_id in corpus.row_of:
        return Rejected(article.doc_id, "duplicate_doc_id", "an earlier row has the same _id")
    if not _title_words(article):
        return Rejected(article.doc_id, "no_words", "title and first section hold no letter and no digit")
    return None


def _add(corpus: _Corpus, article: Article) -> int:
    """Adds an article; returns its row."""
    row = len(corpus.titles)
    corpus.row_of[article.doc_id] = row
    corpus.row_titled.setdefault(_folded(article.title), row)
    title = _title_words(article)
    corpus.titles.append(" ".join(title))
    corpus.content.append(content_of(article.title, f"{article.opening}\x1f{article.rest}").hex())
    telling = dict.fromkeys(word for word in words(article.opening) if is_topical(word) and word not in title)
    corpus.own.append([*telling][:NUM_OWN])
    return row


def _title_words(article: Article) -> list[str]:
    most = TitleSettings().max_words
    return words(article.title)[:most] or words(article.opening)[:most]


def _queries(article: Article, number: int, seed: int) -> list[str]:
    """Returns so many sentences of the first section, or as many as it has; the section where it has no whole one."""
    text = " ".join(article.opening.split())
    sentences = [sentence for sentence in _SENTENCE.split(text) if len(words(sentence)) >= _FEWEST_WORDS]
    if not sentences:
        return [text] if words(text) else []
    sentences = list(dict.fromkeys(sentences))
    return random.Random(seed_of(seed, "sentences", article.doc_id)).sample(sentences, min(number, len(sentences)))


def _bare(article: Article) -> Article:
    return replace(article, opening="", rest="")


def _graded(corpus: _Corpus, asked: _Asked) -> dict[int, int]:
    """Returns row -> grade of what is relevant to an article's queries, itself first."""
    article = asked.article
    near = corpus.rows(article.see_also) or corpus.rows(article.references)
    rows = {asked.row: HIGHEST_GRADE}
    for grade, found in ((3, near), (2, corpus.rows(article.opening_links)), (1, corpus.rows(article.other_links))):
        for row in found:
            rows.setdefault(row, grade)
    return rows


def _folded(title: str) -> str:
    return " ".join(title.replace("_", " ").split()).casefold()

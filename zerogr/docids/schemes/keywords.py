"""Keywords: a language model names each document with a few words, as in ZeroGR; they are validated and repaired.

The LM proposes several docids per document. One that breaks the rules of `zerogr.docids.rules` is repaired from the document's
own terms, never passed through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from zerogr.config.base import GenerationConfig, SchemeSettings
from zerogr.config.tree import Config
from zerogr.corpus.stage import load_frequency
from zerogr.docids import prompts
from zerogr.docids.rules import Limits, Terms, repair, validate
from zerogr.docids.scheme import Context, Proposal, WordScheme
from zerogr.docids.words import NO_WORDS, proposal_of, terms_of
from zerogr.errors import UserError
from zerogr.index.index import Index, shards_in
from zerogr.llm.engines.engine import Generation, Prompt, Sampling
from zerogr.llm.generation import Rejection, model_inputs
from zerogr.seeds import seed_of
from zerogr.store import storage
from zerogr.text.terms import DocumentFrequency
from zerogr.text.words import words


class KeywordsSettings(SchemeSettings, GenerationConfig):
    """Of the scheme keywords."""

    needs_engine = True

    scheme: str = Field("keywords", description="Keywords that a language model proposes, validated and repaired.")
    prompt_style: Literal["brief", "rules"] = Field(
        "brief",
        description="How the LM is asked: brief for small models, rules (those of the paper) for ones of 1B and more.",
    )
    min_words: int = Field(6, ge=1, le=32, description="Fewest words of a docid (fewer where the document has fewer).")
    max_words: int = Field(8, ge=1, le=32, description="Most words of a docid.")
    min_core_terms: int = Field(3, ge=0, le=32, description="Words of the docid that must occur in the document.")
    max_foreign_words: int = Field(
        0,
        ge=0,
        le=32,
        description="Words that need not occur in it; 0 for small models, 2 or 3 for ones of 1B and more.",
    )
    candidates: int = Field(
        2, ge=1, le=16, description="Docids the LM proposes per document; later ones serve when earlier ones collide."
    )
    temperature: float = Field(0.3, ge=0, le=2, description="0 = the likeliest words.")
    max_tokens: int = Field(32, ge=4, le=256, description="Tokens per proposal.")

    @model_validator(mode="after")
    def _word_limits(self) -> KeywordsSettings:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}; it must not exceed max_words = {self.max_words}")
        if self.min_core_terms > self.max_words:
            raise ValueError(
                f"min_core_terms is {self.min_core_terms}; it must not exceed max_words = {self.max_words}"
            )
        return self


class Keywords(WordScheme):
    """What the LM proposes, each valid at first try or repaired."""

    Settings = KeywordsSettings

    def __init__(self, settings: KeywordsSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._limits = limits_of(settings)

    @classmethod
    def inputs(cls, settings: KeywordsSettings) -> dict[str, Any]:
        """Returns the wording of the prompt and the model's weights."""
        return {"docids.prompt": prompts.docid_wording(settings), **model_inputs("docids", settings)}

    def identify(self, documents: Sequence[dict[str, Any]]) -> list[Proposal | Rejection]:
        """Asks the model about all documents at once."""
        return list(map(self._judge, documents, self._generate(documents)))

    def _generate(self, documents: Sequence[dict[str, Any]]) -> list[Generation]:
        settings, seed = self.settings, self.context.seed
        requests = []
        for document in documents:
            user, prefill = prompts.docid_prompt(settings, document)
            seeds = (seed_of(seed, "docids", document["doc_id"], i) for i in range(settings.candidates))
            requests.append(Prompt(user=user, prefill=prefill, seeds=tuple(seeds)))
        sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, top_p=settings.top_p)
        assert self.context.engine is not None
        return self.context.engine.generate(requests, sampling)

    def _judge(self, document: dict[str, Any], generation: Generation) -> Proposal | Rejection:
        if generation.error:
            return Rejection("engine_error", generation.error)
        terms = terms_of(document, self.context)
        if not terms.ranked:
            return NO_WORDS
        chosen, violations = judge_keywords(generation.texts, terms, self._limits, self.context.frequency)
        proposal = proposal_of(terms, list(chosen), list(chosen.values()))
        proposal.violations = violations
        proposal.num_prompt_tokens = generation.num_prompt_tokens
        proposal.num_output_tokens = generation.num_output_tokens
        return proposal


def judge_keywords(
    texts: Sequence[str], terms: Terms, limits: Limits, frequency: DocumentFrequency
) -> tuple[dict[str, str], list[str]]:
    """Returns {docid: `lm` or `repaired`} of the LM's proposals in their order, and the rules that the first one broke."""
    chosen: dict[str, str] = {}
    violations: list[str] = []
    for number, text in enumerate(texts):
        proposal = words(text)
        broken = validate(proposal, terms, limits, frequency)
        violations = broken if number == 0 else violations
        docid = " ".join(repair(proposal, terms, limits, frequency) if broken else proposal)
        chosen.setdefault(docid, "repaired" if broken else "lm")
    return chosen, violations


def limits_of(settings: KeywordsSettings) -> Limits:
    """Returns the rules' limits as configured."""
    return Limits(
        min_words=settings.min_words,
        max_words=settings.max_words,
        min_core_terms=settings.min_core_terms,
        max_foreign_words=settings.max_foreign_words,
    )


def keywords_of(config: Config) -> KeywordsSettings:
    """Returns how docids are asked for, for who teaches a model to write them.

    Raises:
        UserError: The configuration's docids are of another scheme.
    """
    if not isinstance(config.docids, KeywordsSettings):
        raise UserError(
            f"a docid generator learns keywords, and docids.scheme is {config.docids.scheme}; set it to keywords"
        )
    return config.docids


def check_docids(config: Config, index: Index) -> dict[str, int]:
    """Returns {rule: docids of the finished stage that break it}; empty when every keyword docid obeys the rules."""
    frequency = load_frequency(index)
    limits = limits_of(keywords_of(config))
    broken: Counter[str] = Counter()
    for shard in shards_in(index.path("docids")):
        documents = {row["row_id"]: row for row in storage.read_parquet(index.shard("corpus", shard)).to_pylist()}
        for row in storage.read_parquet(index.shard("docids", shard), ["row_id", "docid"]).to_pylist():
            document = documents[row["row_id"]]
            terms = Terms.of(document["title"], document["text"], frequency)
            broken.update(validate(row["docid"].split(" "), terms, limits, frequency))
    return dict(sorted(broken.items()))

"""Shows where a document was lost in a search. `zerogr explain INDEX QUERY --doc DOC_ID`"""

from __future__ import annotations

import argparse
import json

from jobs.command import run_module
from jobs.search import check_query, how_to_decode
from jobs.tables import print_explanation
from zerogr.evaluation.explain import explain
from zerogr.index.index import Index
from zerogr.retriever import Retriever


def command(options: argparse.Namespace) -> None:
    """Prints the explanation."""
    check_query(options.query)
    how = how_to_decode(options)
    retriever = Retriever.load(options.index)
    explanation = explain(
        retriever, Index(options.index), options.query, options.doc, instruction=options.instruction, **how
    )
    if options.json:
        print(json.dumps(explanation.as_json(retriever), ensure_ascii=False, indent=2))
    else:
        print_explanation(explanation, retriever)


if __name__ == "__main__":
    run_module("explain", command)

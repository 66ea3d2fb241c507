"""The front door: the `zerogr` command. Parses, calls one room, prints; everything heavy is imported where it is used.

Results go to standard output, everything else to standard error. Exit status: 0 done, 2 the user's mistake (one sentence),
1 anything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from zerogr.errors import Fault, UserError

if TYPE_CHECKING:
    from zerogr.config import Config
    from zerogr.index import StageRecord

STAGE_NAMES = ("corpus", "docids", "queries", "trie", "retriever", "evaluation")
RECIPE_NAMES = ("retriever", "docid_generator", "query_generator")
STRATEGY_NAMES = ("greedy", "beam", "nucleus", "reverse_annealing", "stochastic_beam", "best_first")

EPILOG = """\
a first index, offline, on a laptop:
  zerogr config > config.yaml             write the documented default configuration
  zerogr index config.yaml                docids, pseudo-queries, trie, retriever: resumable, run it again after a fault
  zerogr search index "sort a list of dictionaries"
  zerogr status index
"""


DISTIL_EPILOG = """\
A task is a corpus with its instruction. For every document of every task the teacher, distil.model, is asked what the two
generators are asked when they index: for docids, and for queries under the task's instruction. Docids that break a rule and
queries off the topic are rejected with the reason; what is left is for fine-tuning the generators. Run it again after
a fault: finished shards are never made again.

  distil:
    model: Qwen/Qwen2.5-7B-Instruct     # a folder, a Hub name or an s3:// URI
    out: s3://bucket/teacher            # a folder of its own
    tasks:                              # none = the corpus and the instruction of this file
      - name: scifact
        source: path/to/scifact         # whatever corpus.source may be; corpus.title_column and its kin may stand here too
        instruction: Given a scientific claim, find the abstracts that support or refute it.
        max_documents: 20000            # sampled by seed; without it all

what it writes below distil.out, a row per pair; the assistant's turn is `prefill`, a space if there is one, `completion`:
  docids/part-000042.parquet            task, doc_id, prompt, prefill, completion
  queries/part-000042.parquet           task, doc_id, instruction, prompt, prefill, completion
  rejected/distil-part-000042.parquet   task, doc_id, stage, reason, detail

`zerogr config` explains every key of the section; `zerogr status` takes distil.out as well.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    _set_up_logging(options.verbose)
    try:
        options.run(options)
    except UserError as error:
        print(f"zerogr: {error}", file=sys.stderr)
        return 2
    except Fault as fault:
        print(f"zerogr: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("zerogr: interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left
        return 1
    return 0


def run() -> None:
    """The console script."""
    sys.exit(main())


def run_module(name: str) -> None:
    """Makes `python -m jobs.NAME CONFIG` do what `zerogr NAME CONFIG` does."""
    sys.exit(main([name, *sys.argv[1:]]))


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    if not verbose:
        for name in ("ray", "httpx", "bm25s", "aiobotocore", "transformers", "ray.data", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR if name == "ray.data" else logging.WARNING)
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zerogr",
        description="Generative retrieval: a language model, trained on your documents, is the search index.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--verbose", action="store_true", help="show what the libraries underneath have to say")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(run=run)
        return sub

    def config_command(
        name: str, run: Any, text: str, stages: tuple[str, ...] = STAGE_NAMES
    ) -> argparse.ArgumentParser:
        sub = command(name, run, text)
        sub.add_argument("config", metavar="CONFIG", help="a YAML file; `zerogr config` prints the documented default")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY.SUB=VALUE",
            help="override one key; may be given several times",
        )
        sub.add_argument(
            "--rebuild", action="append", default=[], choices=stages, metavar="STAGE",
            **({"nargs": "?", "const": stages[0]} if len(stages) == 1 else {}),
            help=f"forget a stage and all that was made from it, then run ({', '.join(stages)})",
        )  # fmt: skip
        return sub

    config_command("index", _index, "build or complete an index: every stage in order, resumable")
    for name, text in {
        "corpus": "read the corpus into numbered shards",
        "docids": "give every document its docid",
        "queries": "write pseudo-queries for every document",
        "trie": "build the trie of the docids",
    }.items():
        config_command(name, _stage, text)
    sub = config_command("train", _train, "train the retriever, or a generator", (*STAGE_NAMES, *RECIPE_NAMES[1:]))
    sub.add_argument(
        "--recipe", choices=RECIPE_NAMES, default="retriever",
        help="what to train: the index's retriever (default), or from the pairs of section tuning a docid_generator or a "
        "query_generator; then name its folder, TUNING.OUT/RECIPE, as docids.model or queries.model",
    )  # fmt: skip
    sub = config_command(
        "distil", _distil, "have a stronger model write pairs for fine-tuning the generators", ("distil",)
    )
    sub.epilog, sub.formatter_class = DISTIL_EPILOG, argparse.RawDescriptionHelpFormatter
    sub = config_command("submit", _submit, "run `index` on a Ray cluster")
    sub.add_argument(
        "--address",
        required=True,
        metavar="RAY_ADDRESS",
        help="of the cluster's job server, such as http://127.0.0.1:8265",
    )
    sub.add_argument("--no-wait", action="store_true", help="return as soon as the job is accepted")

    sub = command("status", _status, "show the stages of an index, their counts and fingerprints")
    sub.add_argument("index", metavar="INDEX")
    sub.add_argument("--json", action="store_true", help="print one JSON document")

    sub = command("search", _search, "answer a query")
    sub.add_argument("index", metavar="INDEX")
    sub.add_argument("query", metavar="QUERY")
    sub.add_argument("-k", type=_positive, default=None, help="documents to return (default: the index's own, 10)")
    sub.add_argument(
        "--instruction", metavar="TEXT", help="the retrieval task in one sentence (default: the index's own)"
    )
    sub.add_argument("--strategy", choices=STRATEGY_NAMES, help="how docids are drawn (default: the index's own)")
    sub.add_argument("--seed", type=int, default=0, help="of the sampling strategies (default: 0)")
    sub.add_argument("--json", action="store_true", help="print one JSON document")

    sub = command("evaluate", _evaluate, "measure an index on judged queries, beside baselines")
    sub.add_argument("index", metavar="INDEX")
    sub.add_argument(
        "--dataset", required=True, metavar="DIR", help="a BEIR folder: queries.jsonl and qrels/<split>.tsv"
    )
    sub.add_argument("--split", default="test", help="default: test")
    sub.add_argument("--k", type=_positive, default=100, help="documents per query (default: 100)")
    sub.add_argument(
        "--strategy", nargs="+", choices=STRATEGY_NAMES, default=["beam", "reverse_annealing"], metavar="NAME"
    )
    sub.add_argument("--baseline", nargs="*", choices=["bm25"], default=["bm25"], metavar="NAME", help="default: bm25")
    sub.add_argument("--out", metavar="DIR", help="where run files and metrics.json go (default: nowhere)")
    sub.add_argument("--json", action="store_true", help="print one JSON document")

    sub = command("serve", _serve, "serve an index over HTTP with Ray Serve")
    sub.add_argument("index", metavar="INDEX")
    sub.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    sub.add_argument("--port", type=int, help="default: 8000")
    sub.add_argument("--config", metavar="FILE", help="a Ray Serve config file instead of serve/config.yaml")

    command("config", _config, "print the documented default configuration")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _load(options: argparse.Namespace) -> Config:
    from zerogr.config_file import load_config
    from zerogr.index import Index

    config = load_config(options.config, options.set)
    for stage in options.rebuild:
        Index(config.tuning.out if stage in RECIPE_NAMES[1:] else config.index).rebuild(stage)
    return config


def _index(options: argparse.Namespace) -> None:
    from jobs import index

    config = _load(options)
    records = index.run(config)
    _print_stages(config.index, records)
    if "evaluation" in records:
        print()
        _print_comparison(records["evaluation"].counts["rows_compared"])


def _stage(options: argparse.Namespace) -> None:
    import importlib

    config = _load(options)
    record = importlib.import_module(f"jobs.{options.command}").run(config)
    _print_stages(config.index, {options.command: record})


def _train(options: argparse.Namespace) -> None:
    from jobs import train

    config = _load(options)
    record = train.run(config, options.recipe)
    _print_stages(config.index if options.recipe == "retriever" else config.tuning.out, {options.recipe: record})


def _distil(options: argparse.Namespace) -> None:
    from jobs import distil
    from zerogr.config_file import load_config
    from zerogr.index import Index

    config = load_config(options.config, options.set)
    if options.rebuild:
        Index(config.distil.out).rebuild("distil")
    record = distil.run(config)
    counts = record.counts
    _print_stages(config.distil.out, {"distil": record})
    width = max(map(len, counts["tasks"]))
    for name, pairs in counts["tasks"].items():
        print(
            f"    {name:<{width}}  {pairs['documents']:>9,} documents  {pairs['docids']:>9,} docids"
            f"  {pairs['queries']:>9,} queries"
        )
    print(f"    valid: {counts['valid_docids']:.1%} of the docids, {counts['valid_queries']:.1%} of the queries")


def _submit(options: argparse.Namespace) -> None:
    from jobs.submit import submit
    from zerogr.config_file import load_config

    print(
        submit(
            load_config(options.config, options.set), options.address, wait=not options.no_wait, rebuild=options.rebuild
        )
    )


def _status(options: argparse.Namespace) -> None:
    from jobs.status import print_status

    print_status(options.index, as_json=options.json)


def _search(options: argparse.Namespace) -> None:
    import time
    from dataclasses import asdict

    from zerogr.retriever import Retriever

    retriever = Retriever.load(options.index)
    start = time.monotonic()
    hits = retriever.search(
        [options.query], instruction=options.instruction, k=options.k, strategy=options.strategy, seed=options.seed
    )[0]
    took_ms = round(1000 * (time.monotonic() - start), 1)
    if options.json:
        print(json.dumps({"hits": [asdict(hit) for hit in hits], "took_ms": took_ms}, ensure_ascii=False, indent=2))
        return
    width = max((len(hit.doc_id) for hit in hits), default=0)
    for hit in hits:
        print(f"{hit.rank:3}  {hit.score:8.3f}  {hit.doc_id:<{width}}  {hit.docid}")
    print(f"{took_ms:,.0f} ms", file=sys.stderr)


def _evaluate(options: argparse.Namespace) -> None:
    from jobs.evaluate import evaluate

    rows = evaluate(
        options.index,
        options.dataset,
        split=options.split,
        k=options.k,
        strategies=options.strategy,
        baselines=options.baseline,
        out=options.out,
    )
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        _print_comparison(rows)


def _serve(options: argparse.Namespace) -> None:
    from serve.run import serve_index

    serve_index(options.index, host=options.host, port=options.port, config_file=options.config)


def _config(_options: argparse.Namespace) -> None:
    from zerogr.config_file import default_yaml

    print(default_yaml(), end="")


def _print_stages(uri: str, records: dict[str, StageRecord]) -> None:
    from jobs.stages import summary
    from zerogr.progress import duration

    print(uri)
    for stage, record in records.items():
        print(f"  {stage:<10}  {duration(record.seconds):>7}  {record.files:>5} files  {summary(record.counts)}")


def _print_comparison(rows: list[dict[str, Any]]) -> None:
    print(f"{'system':<28}{'queries':>8}{'Acc@1':>8}{'nDCG@10':>9}{'Recall@100':>12}{'ms/query':>10}")
    for row in rows:
        print(
            f"{row['system']:<28}{row['num_queries']:>8}{row['acc@1']:>8.3f}{row['ndcg@10']:>9.3f}"
            f"{row['recall@100']:>12.3f}{row['ms_per_query']:>10.1f}"
        )


if __name__ == "__main__":
    run()

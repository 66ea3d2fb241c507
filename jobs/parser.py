"""The command line: every command with its arguments and what `--help` teaches about them. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jobs.epilogs import (
    ABLATE_EPILOG,
    DISTIL_EPILOG,
    EPILOG,
    PRETRAIN_EPILOG,
    STUDY_EPILOG,
    SUBMIT_EPILOG,
    UPDATE_EPILOG,
)
from zerogr import __version__
from zerogr.evaluation.metrics import METRICS
from zerogr.index.stage import (
    DISTIL,
    EVALUATION,
    GENERATORS,
    INDEX,
    PRETRAINED,
    PRETRAINING,
    RETRIEVER,
    TEACHER_DATA,
    Stage,
)

POSITIONAL = {"study": "which one: dynamic", "config": "a YAML file; `zerogr config` prints the documented default"}
"""What the help says of a positional argument."""
BASELINE_NAMES = ("bm25", "doc2query", "minilm", "rrf")
STRATEGY_NAMES = ("greedy", "beam", "nucleus", "reverse_annealing", "stochastic_beam", "best_first")
FIELD_NAMES = ("title", "text", "kind", "metadata")

METHOD_NAMES = ("none", "finetune", "replay", "rome", "memit", "alphaedit", "emmet", "dome", "certificate")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; `command` says which one, None if none was given."""
    parser = argparse.ArgumentParser(
        prog="zerogr",
        description="Generative retrieval: a language model, trained on your documents, is the search index.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"zerogr {__version__}")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries underneath have to say")
    commands = Commands(parser.add_subparsers(dest="command", metavar="COMMAND"))
    _add_stages(commands)
    _add_update(commands)
    _add_clean(commands)
    _add_experiments(commands)
    sub = commands.add("doctor", "look for what would stop a run, in seconds and before it starts", as_json=True)
    sub.add_argument("config", metavar="CONFIG", nargs="?", help=f"{POSITIONAL['config']}; the default without it")
    add_set(sub)
    _add_plan(commands)
    commands.add("status", "show the stages of an index, their counts and fingerprints", "index", as_json=True)
    _add_queries(commands)
    _add_evaluate(commands)
    sub = commands.add("serve", "serve an index over HTTP with Ray Serve", "index")
    sub.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    sub.add_argument("--port", type=int, help="default: 8000")
    sub.add_argument(
        "--replicas",
        type=_positive,
        metavar="N",
        help="that many searchers, always (default: as many as the load needs)",
    )
    sub.add_argument("--config", metavar="FILE", help="a Ray Serve config file instead of serve/config.yaml")
    commands.add("config", "print the documented default configuration")
    return parser


class Commands:
    """The commands as they are added, and what several of them have in common."""

    def __init__(self, subparsers: Any) -> None:
        self._subparsers = subparsers

    def add(
        self, name: str, text: str, *positional: str, as_json: bool = False, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        """Returns the parser of a new command with the given positional arguments."""
        sub: argparse.ArgumentParser = self._subparsers.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument in positional:
            sub.add_argument(argument, metavar=argument.upper(), help=POSITIONAL.get(argument))
        sub.set_defaults(parser=sub)
        if "config" in positional:
            add_set(sub)
        if as_json:
            sub.add_argument("--json", action="store_true", help="print one JSON document")
        return sub

    def add_stage(
        self, name: str, text: str, stages: Sequence[Stage] = INDEX.stages, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        """Returns the parser of a command that runs stages, which may be forgotten first."""
        sub = self.add(name, text, "config", epilog=epilog)
        names = [stage.name for stage in stages]
        sub.add_argument(
            "--rebuild", action="append", default=[], choices=names, metavar="STAGE",
            **({"nargs": "?", "const": names[0]} if len(names) == 1 else {}),
            help=f"forget a stage and all that was made from it, then run ({', '.join(names)})",
        )  # fmt: skip
        return sub


def spelt(options: argparse.Namespace) -> list[str]:
    """Returns arguments that mean the same as parsed ones: the command, what stands without a name, then the options."""
    places, named = [options.command], []
    for action in options.parser._actions:
        value = getattr(options, action.dest, action.default)
        if value == action.default:
            continue
        if not action.option_strings:
            places.append(str(value))
        elif action.nargs == 0:
            named.append(action.option_strings[-1])
        elif isinstance(value, list) and action.nargs in ("+", "*"):
            named += [action.option_strings[-1], *map(str, value)]
        else:
            named += [f"{action.option_strings[-1]}={each}" for each in (value if isinstance(value, list) else [value])]
    return places + named


def add_set(sub: argparse.ArgumentParser) -> None:
    """Adds `--set`; whoever has it is given the validated configuration."""
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.SUB=VALUE",
        help="override one key; may be given several times",
    )


def add_wait(sub: argparse.ArgumentParser) -> None:
    """Adds `--wait` to a command that changes an index."""
    sub.add_argument(
        "--wait", action="store_true", help="wait while another driver is at work there, instead of refusing"
    )


def _add_stages(commands: Commands) -> None:
    add_wait(commands.add_stage("index", "build or complete an index: every stage in order, resumable"))
    for stage in INDEX.stages:
        if stage.command not in ("train", "evaluate"):
            add_wait(commands.add_stage(stage.command, stage.help))
    sub = commands.add_stage("train", RETRIEVER.help, (*INDEX.stages, *GENERATORS.stages))
    recipes = [RETRIEVER.name, *(stage.name for stage in GENERATORS.stages)]
    sub.add_argument(
        "--recipe", choices=recipes, default=RETRIEVER.name,
        help="what to train: the index's retriever (default), or from the pairs of section tuning a docid_generator or a "
        "query_generator; then name its folder, TUNING.OUT/RECIPE, as docids.model or queries.model",
    )  # fmt: skip
    add_wait(sub)
    add_wait(commands.add_stage("pretrain", PRETRAINED.help, PRETRAINING.stages, PRETRAIN_EPILOG))
    add_wait(commands.add_stage("distil", DISTIL.help, TEACHER_DATA.stages, DISTIL_EPILOG))


def _add_experiments(commands: Commands) -> None:
    sub = commands.add(
        "ablate",
        "index and measure variants of a configuration, one index each",
        "config",
        as_json=True,
        epilog=ABLATE_EPILOG,
    )
    add_wait(sub)
    sub = commands.add(
        "study", "let a corpus grow, and measure what is found of the old and of the new", "study", "config", as_json=True,
        epilog=STUDY_EPILOG,
    )  # fmt: skip
    add_wait(sub)
    sub = commands.add("submit", "run a command on a Ray cluster", epilog=SUBMIT_EPILOG)
    sub.add_argument("job", nargs="+", metavar="JOB", help="CONFIG of an index, or -- and a command with its arguments")
    sub.add_argument(
        "--address",
        required=True,
        metavar="RAY_ADDRESS",
        help="of the cluster's job server, such as http://127.0.0.1:8265",
    )
    sub.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY.SUB=VALUE", help="as for `index`"
    )
    sub.add_argument("--rebuild", action="append", default=[], metavar="STAGE", help="as for `index`")
    sub.add_argument(
        "--gpus", type=float, default=0.0, metavar="N",
        help="GPUs of the node that the command itself runs on, where evaluate, update and study search and learn (default: 0)",
    )  # fmt: skip
    sub.add_argument(
        "--env", action="append", default=[], metavar="NAME",
        help="an environment variable of this shell that the job gets as well; whoever may see the job may see its value",
    )  # fmt: skip
    sub.add_argument("--no-wait", action="store_true", help="return as soon as the job is accepted")


def _add_update(commands: Commands) -> None:
    sub = commands.add(
        "update", "add documents to an index and remove others", "index", as_json=True, epilog=UPDATE_EPILOG
    )
    sub.add_argument(
        "--add",
        metavar="SOURCE",
        help="what to add: a folder or a file, as corpus.source; columns as in the index's corpus, format auto",
    )
    sub.add_argument("--remove", metavar="FILE", help="a text file with the doc_ids to remove, one a line")
    sub.add_argument("--method", metavar="NAME", help="how the retriever learns: " + ", ".join(METHOD_NAMES))
    sub.add_argument("--compact", action="store_true", help="write documents and trie anew as one")
    sub.add_argument("--discard", action="store_true", help="forget an update that was begun and not published")
    sub.add_argument("--rollback", type=int, metavar="VERSION", help="make an older version the current one again")
    sub.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY.SUB=VALUE",
        help="override one key of the sections corpus, queries, update and compute; may be given several times",
    )  # fmt: skip
    add_wait(sub)


def _add_clean(commands: Commands) -> None:
    sub = commands.add("clean", "delete what dead runs and old versions have left in an index", "index", as_json=True)
    sub.add_argument("--dry-run", action="store_true", help="show what would be deleted")
    sub.add_argument(
        "--keep-versions", type=_positive, metavar="N",
        help="delete older versions, too: the current one and the newest others stay, N together, and the one that the "
        "index began with (default: all stay)",
    )  # fmt: skip
    add_wait(sub)


def _add_plan(commands: Commands) -> None:
    sub = commands.add(
        "plan", "price an index before it is built: hours, dollars, memory, disk, by measured rates", "config", as_json=True
    )  # fmt: skip
    sub.add_argument("--documents", type=_positive, metavar="N", help="that the index will have (default: the corpus')")
    sub.add_argument(
        "--document-bytes", type=_positive, metavar="N", help="of a document, on average, instead of reading the corpus"
    )
    sub.add_argument(
        "--model",
        nargs="+",
        metavar="SIZE",
        help="135M, 1B, 1.5B, 3B or 7B: of the retriever (default: retriever.model)",
    )
    sub.add_argument("--generator", metavar="SIZE", help="of the models that write docids and queries")
    sub.add_argument(
        "--gpu", metavar="KIND", help="h200, h100, a100, ... or none (default: h200 where compute has GPUs)"
    )
    sub.add_argument("--cpu", default="avx2", metavar="KIND", help="avx2 (the slowest, default), bf16 or amx")
    sub.add_argument(
        "--nodes", type=_positive, metavar="N", help="of one GPU and 16 cores each, or of two cores, or this machine's"
    )
    for kind in ("gpu", "cpu"):
        sub.add_argument(
            f"--dollars-per-{kind}-hour", type=float, metavar="PRICE", help="none is assumed" if kind == "gpu" else "of a core"
        )  # fmt: skip
    sub.add_argument(
        "--rehearse",
        action="store_true",
        help="build two small indexes here first, and plan from what they take; minutes",
    )
    sub.add_argument("--against", metavar="INDEX", help="compare with the seconds that a finished index has recorded")


def _add_queries(commands: Commands) -> None:
    def add(name: str, text: str, k: int | None) -> argparse.ArgumentParser:
        sub = commands.add(name, text, "index", "query", as_json=True)
        sub.add_argument(
            "-k", type=_positive, default=k, help=f"documents to return (default: {k or 'the index has its own, 10'})"
        )
        sub.add_argument(
            "--instruction", metavar="TEXT", help="the retrieval task in one sentence (default: the index's own)"
        )
        sub.add_argument(
            "--strategy", type=_strategy, metavar="NAME[:OPTION=VALUE,...]",
            help=f"how docids are drawn: {', '.join(STRATEGY_NAMES)}, with options such as beam:beam_width=200 "
            "(default: the index's own)",
        )  # fmt: skip
        sub.add_argument("--seed", type=int, default=0, help="of the sampling strategies (default: 0)")
        return sub

    sub = add("search", "answer a query, by an index or by a service", None)
    sub.usage = "zerogr search [options] INDEX QUERY\n       zerogr search [options] --url URL QUERY"
    for action in sub._positionals._group_actions:
        action.required = False  # with --url the query stands alone; `jobs.search` says what is missing
    sub.add_argument("--url", help="of a service that answers, such as http://127.0.0.1:8000, instead of an index")
    sub.add_argument(
        "--token-file", metavar="FILE",
        help="holds the token that the service wants; without it the environment variable ZEROGR_TOKEN does, if it is set",
    )  # fmt: skip
    sub.add_argument(
        "--rerank", action="store_true", help="order what is found by the score that training.loss ranknet teaches"
    )
    sub.add_argument(
        "--filter", action="append", default=[], dest="filters", metavar="CONDITION",
        help="only documents whose metadata has key=value, key=a,b (one of them), key>=x or key<=x; may be given several "
        "times; the keys are those of serving.filter_keys",
    )  # fmt: skip
    sub.add_argument(
        "--fields", type=_fields, metavar="NAME,...",
        help="what to show of the documents: title, text (a snippet), kind, metadata, or none (default: title,text; with "
        "--json none)",
    )  # fmt: skip
    sub.add_argument(
        "--snippet-characters", type=int, default=200, metavar="N", help="of the text, at most (default: 200)"
    )
    sub = add("explain", "show where a document was lost in a search, token by token or word by word", 100)
    sub.add_argument("--doc", required=True, metavar="DOC_ID", help="the document that should have been found")


def _add_evaluate(commands: Commands) -> None:
    sub = commands.add("evaluate", EVALUATION.help, "index", as_json=True)
    sub.add_argument(
        "--dataset", required=True, metavar="DIR", help="a BEIR folder: queries.jsonl and qrels/<split>.tsv"
    )
    sub.add_argument("--split", default="test", help="default: test")
    sub.add_argument(
        "--positions", choices=("all", "even", "odd"), default="all",
        help="of the queries in their file: choose settings on even ones, report on odd ones (default: all)",
    )  # fmt: skip
    sub.add_argument("--k", type=_positive, default=100, help="documents per query (default: 100)")
    sub.add_argument(
        "--exclude-query-id", action="store_true",
        help="leave the document with the query's own id out of every answer, where queries are documents (ArguAna, Quora)",
    )  # fmt: skip
    sub.add_argument(
        "--strategy", nargs="+", action="extend", metavar="NAME[:OPTION=VALUE,...]",
        help=f"{', '.join(STRATEGY_NAMES)}, with options such as beam:beam_width=200,normalise=vocabulary "
        "(default: beam reverse_annealing)",
    )  # fmt: skip
    sub.add_argument(
        "--baseline", nargs="*", action="extend", choices=BASELINE_NAMES, metavar="NAME",
        help=f"{', '.join(BASELINE_NAMES)}, or none (default: bm25)",
    )  # fmt: skip
    sub.add_argument(
        "--metric", nargs="+", action="extend", choices=tuple(METRICS), metavar="NAME",
        help=f"what the table shows first and differences are tested by: {', '.join(METRICS)} "
        "(default: acc@1 ndcg@10 recall@100); --json and --out have all of them",
    )  # fmt: skip
    sub.add_argument(
        "--run", nargs="+", action="extend", default=[], dest="runs", metavar="FILE",
        help="TREC run files of other systems, to be measured beside",
    )  # fmt: skip
    sub.add_argument("--seed", type=int, default=0, help="of the sampling strategies (default: 0)")
    sub.add_argument(
        "--out", metavar="DIR", help="where the report, run files, metrics.json and queries.jsonl go (default: nowhere)"
    )


def _fields(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    if unknown := set(names) - set(FIELD_NAMES):
        raise argparse.ArgumentTypeError(
            f"'{min(unknown)}' is none of {', '.join(FIELD_NAMES)}; give some of them, or none"
        )
    return names


def _strategy(text: str) -> str:
    if text.partition(":")[0] not in STRATEGY_NAMES:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(STRATEGY_NAMES)}")
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number

"""The doctor: what would stop a run, found in seconds and before it starts. Every finding is a line that says what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from zerogr.config.base import EncoderConfig, EngineConfig, TunedConfig
from zerogr.config.tree import Config
from zerogr.corpus.document import Rejected
from zerogr.corpus.readers import detect_format, read_corpus
from zerogr.errors import Fault, UserError
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import fastest_dtype, load_tokenizer, resolve_model
from zerogr.machine import num_cores
from zerogr.network import check_ray_address
from zerogr.store import storage
from zerogr.store.cache import cache_folder, make_folder

ROWS_READ = 100
"""Of the corpus."""
_SMALL_DISK_BYTES = 2 * 2**30


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    state: Literal["ok", "warning", "fault"]
    text: str


Check = Callable[[Config], Iterator[Finding]]


def examine(config: Config) -> Iterator[Finding]:
    """Yields what is found, thing by thing; a check that fails in a way nobody thought of is a finding, too."""
    for check in CHECKS:
        try:
            yield from check(config)
        except (UserError, Fault) as error:
            yield Finding(check.__name__.strip("_").replace("_", " "), "fault", str(error))
        except Exception as error:
            text = f"this check ended with {type(error).__name__}: {error}; please report it"
            yield Finding(check.__name__.strip("_").replace("_", " "), "fault", text)


def _python(_: Config) -> Iterator[Finding]:
    text = f"{platform.python_version()} on {platform.machine()}, {num_cores()} cores"
    is_old = sys.version_info < (3, 11)
    yield Finding("python", "fault" if is_old else "ok", f"{text}; 3.11 or newer is needed" if is_old else text)


def _torch(config: Config) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("gpu", "ok", ", ".join(f"{count} x {name}" for name, count in names.items()))
        compute = config.compute
        if not compute.num_gpus_per_engine or not compute.num_gpus_per_trainer:
            text = "compute.num_gpus_per_engine and num_gpus_per_trainer are 0 somewhere; set them to 1 to use the GPU"
            yield Finding("gpu", "warning", text)
    has_bf16 = fastest_dtype("cpu") == torch.bfloat16
    text = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {'bf16' if has_bf16 else 'no bf16'}"
    if has_bf16 or torch.cuda.is_available():
        yield Finding("torch", "ok", text)
    else:
        yield Finding(
            "torch", "warning", f"{text}: training runs in fp32, several times slower than where there is AMX"
        )


def _ray(_: Config) -> Iterator[Finding]:
    version = importlib.metadata.version("ray")
    if address := os.environ.get("RAY_ADDRESS"):
        check_ray_address(address)
        yield Finding("ray", "ok", f"{version}, a cluster answers at {address}")
    else:
        yield Finding("ray", "ok", f"{version}, on this machine alone (RAY_ADDRESS is not set)")


def _index(config: Config) -> Iterator[Finding]:
    was_there = storage.exists(config.index)
    probe = storage.join(config.index, ".doctor")
    storage.write_bytes(probe, b"x")
    storage.delete(probe if was_there else config.index)
    yield Finding("index", "ok", f"'{config.index}' can be written")


def _cache(_: Config) -> Iterator[Finding]:
    folder = cache_folder()
    with storage.room_at(str(folder)):
        make_folder(folder)
        (folder / ".doctor").write_bytes(b"x")
        (folder / ".doctor").unlink()
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    text = f"'{folder}' can be written, {free / 2**30:.1f} GiB free"
    is_small = free < _SMALL_DISK_BYTES
    yield Finding(
        "cache", "warning" if is_small else "ok", f"{text}: little; make room or set ZEROGR_CACHE" if is_small else text
    )


def _models(config: Config) -> Iterator[Finding]:
    generating = {"docids": config.docids, "queries": config.queries}
    named = {
        section: settings.model
        for section, settings in generating.items()
        if isinstance(settings, EngineConfig) and settings.engine != "fake" and ":" not in settings.engine
    }
    if isinstance(config.docids, TunedConfig):
        named["docids"] = config.docids.model
    named["retriever"] = config.retriever.model
    for model in dict.fromkeys(named.values()):
        finding = _model(model)
        uses = ", ".join(f"{section}.model" for section in named if named[section] == model)
        yield finding._replace(text=f"{finding.text} ({uses})")


def _model(model: str) -> Finding:
    subject = "model"
    if "://" in model:
        is_there = storage.exists(storage.join(model, "config.json"))
        return Finding(
            subject, "ok" if is_there else "fault", f"'{model}' {'is there' if is_there else 'has no config.json'}"
        )
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # it is looked for, not downloaded
    try:
        folder = resolve_model(model)
    except UserError as error:
        return Finding(subject, "fault" if before == "1" or os.path.sep == model[:1] else "warning", str(error))
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
    try:
        ChatFormat.of(load_tokenizer(folder))
    except (UserError, ValueError, OSError) as error:
        return Finding(subject, "fault", f"'{model}' has no usable tokenizer: {error}")
    return Finding(subject, "ok", f"'{model}' is on this machine")


def _packages(config: Config) -> Iterator[Finding]:
    wanted = {
        "sentence_transformers": (
            isinstance(config.docids, EncoderConfig),
            f"docids.scheme {config.docids.scheme}",
            "dense",
        ),
        "peft": (config.training.lora_rank > 0, "training.lora_rank", "lora"),
    }
    for package, (is_wanted, why, extra) in wanted.items():
        if is_wanted and importlib.util.find_spec(package) is None:
            yield Finding("packages", "fault", f"{why} needs {package}; run `pip install 'zerogr[{extra}]'`")


def _corpus(config: Config) -> Iterator[Finding]:
    if detect_format(config.corpus) == "pystdlib":  # it is as it is, and reading it takes seconds
        yield Finding("corpus", "ok", "the reference text of this Python")
        return
    rows = list(itertools.islice(read_corpus(config.corpus), ROWS_READ))
    rejected = [row for row in rows if isinstance(row, Rejected)]
    text = f"'{config.corpus.source}': of the first {len(rows)} rows {len(rows) - len(rejected)} are documents"
    if not rows:
        yield Finding("corpus", "fault", f"'{config.corpus.source}' holds no row")
        return
    yield Finding("corpus", "warning" if rejected else "ok", text)
    for reason, count in Counter(row.reason for row in rejected).most_common():
        first = next(row for row in rejected if row.reason == reason)
        yield Finding("corpus", "warning", f"{reason}: {count}, such as {first.doc_id} ({first.detail})")


CHECKS: tuple[Check, ...] = (_python, _torch, _ray, _cache, _index, _models, _packages, _corpus)

"""How much faster do examples train here than under an ordinary trainer? `python -m benchmarks.training [--quick]`

The same examples, a retriever's (instruction, query -> docid), the same ones in every optimiser step, the same model in the
same precision under the same optimiser, in one process each:

    ours       examples packed into rows behind their shared prefix, the output head for the targets alone
    trainer    Hugging Face's `Trainer`: every example with its prefix, padded to the longest of its batch, logits of all tokens

The two loss curves must be one, else the figures mean nothing. Two more processes tell what ours owes to what:

    ours, sdpa     with the library's attention in the place of `zerogr.training.attention` (on CPUs, where that is used)
    ours, allowed  as retrievers train by default: docids end with their last choice, softmax over the allowed tokens

The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.core_rates import NoCheckpoints, passages
from benchmarks.report import report
from zerogr.config.file import validate_config
from zerogr.config.names import EMBEDDED_MODEL
from zerogr.llm.chat import ChatFormat
from zerogr.llm.models import fastest_dtype, load_model, resolve_model
from zerogr.training import learner
from zerogr.training.examples import Examples, epoch_order
from zerogr.training.learner import TrainingSettings
from zerogr.training.loop import train
from zerogr.training.packing import passes
from zerogr.training.recipes.retriever import RetrieverRecipe
from zerogr.training.sizes import sizes_for
from zerogr.training.throughput import Cost, peak_flops, peak_memory_bytes

SEED = 0

NOTES = """
- A useful token is one of an example as it stands alone: prefix, query, docid, end. Both sides train the same ones, so
  `useful_tokens_ratio_vs_trainer` is the ratio of their seconds per step; the first steps are left out on both sides.
- `loss_difference`: the largest difference between the two losses of a step, of the trainer's.
- `share_of_useful`: useful tokens over all that pass through the model, padding included; above 1 where a row's examples share
  their prefix.
- On both sides AdamW (fused) moves fp32 weights by fp32 gradients, and products are bf16 (`--precision fp32`: all fp32). Ours
  computes with a bf16 copy of the weights, the trainer, as users run it, under autocast.
- `packed_ratio_vs_sdpa` and `allowed_ratio_vs_vocabulary` are ratios of our own seconds per step, one thing changed; the second
  learns less on purpose, the tokens that the trie forces being left out.
- `mfu`: 6 x parameters x tokens through the model, and the head for the targets alone, over the peak of the device; only where
  that is known.
"""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 examples per step, one step behind one of warm-up")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a folder or a Hugging Face name")
    parser.add_argument(
        "--index",
        help="take docids and queries of this index; passages of Python's own text otherwise",
    )
    parser.add_argument("--steps", type=int, help="of each, behind the warm-up; 12")
    parser.add_argument("--batch-size", type=int, help="examples per step; 32")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="the one that the device is fastest in")
    parser.add_argument("--out", type=Path, help="also write the figures to this Markdown file")
    arguments = parser.parse_args()
    warm_up = 1 if arguments.quick else 2
    num_steps = warm_up + (arguments.steps or (1 if arguments.quick else 12))
    batch_size = arguments.batch_size or (16 if arguments.quick else 32)
    fastest = fastest_dtype("cuda" if torch.cuda.is_available() else "cpu")
    precision = arguments.precision or ("bf16" if fastest == torch.bfloat16 else "fp32")
    settings = {"num_steps": num_steps, "warm_up": warm_up, "batch_size": batch_size, "precision": precision}
    runs = {}
    for name in SIDES:
        print(f"{name}: {num_steps} steps …", file=sys.stderr, flush=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            runs[name] = process.submit(run, name, arguments.model, arguments.index, settings).result()
    ours, trainer = runs["ours"], runs["trainer"]
    difference = np.abs(np.array(ours["losses"]) - trainer["losses"]) / trainer["losses"]
    figures: dict[str, Any] = {
        "device": ours["device"],
        "model": arguments.model,
        "precision": precision,
        "examples_per_step": batch_size,
        "num_steps": num_steps - warm_up,
        "useful_tokens_ratio_vs_trainer": trainer["step_s"] / ours["step_s"],
        "loss_difference": float(difference.max()),
        "first_loss": ours["losses"][0],
        "last_loss": ours["losses"][-1],
        "useful_tokens_per_s": ours["useful_tokens_per_step"] / ours["step_s"],
        "useful_tokens_per_s_trainer": trainer["useful_tokens_per_step"] / trainer["step_s"],
        "step_s": ours["step_s"],
        "step_s_trainer": trainer["step_s"],
        "packed_ratio_vs_sdpa": runs["ours, sdpa"]["step_s"] / ours["step_s"],
        "allowed_ratio_vs_vocabulary": ours["step_s"] / runs["ours, allowed"]["step_s"],
        "share_of_useful": ours["useful_tokens_per_step"] / ours["tokens_per_step"],
        "share_of_useful_trainer": trainer["useful_tokens_per_step"] / trainer["tokens_per_step"],
        "peak_bytes": ours["peak_bytes"],
        "peak_bytes_trainer": trainer["peak_bytes"],
        "mfu": ours["mfu"],
    }
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    report("Training against an ordinary trainer", rounded, arguments.out, NOTES)


def run(name: str, model_name: str, index: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what one side measured."""
    folder = resolve_model(model_name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    model, tokenizer = load_model(folder, device=device, dtype=torch.float32)
    num_examples = settings["num_steps"] * settings["batch_size"]
    normalise = "allowed" if name == "ours, allowed" else "vocabulary"
    choices = None
    if index:
        recipe = RetrieverRecipe(validate_config({"index": index, "training": {"normalise": normalise}}))
        examples = recipe.examples(tokenizer)
        choices = recipe.choices(tokenizer)
        recipe.close()
    else:
        chat = ChatFormat.of(tokenizer)
        rows, choices = passages(chat, num_examples)
        examples = Examples.build(rows, chat, choices if normalise == "allowed" else None)
    settings = {**settings, "normalise": normalise, "choices": choices}
    if name == "ours, sdpa":
        learner.PACKED = "sdpa"  # type: ignore[misc]  # what the learner asks of the model, in this process alone
    ids = epoch_order(np.arange(len(examples)), SEED, 0)[:num_examples]
    if len(ids) < num_examples:
        raise SystemExit(f"'{index}' has {len(ids)} examples; {num_examples} are needed: lower --steps")
    seconds, losses, tokens = SIDES[name](model, examples, ids, settings, device)
    useful = [examples.num_tokens_of(step) for step in np.split(ids, settings["num_steps"])]
    warm_up = settings["warm_up"]
    timed, timed_tokens = seconds[warm_up:], tokens[warm_up:]
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "step_s": median(timed),
        "losses": losses,
        "useful_tokens_per_step": sum(useful[warm_up:]) / len(timed),
        "tokens_per_step": sum(timed_tokens) / len(timed),
        "peak_bytes": peak_memory_bytes(torch.device(device)),
        "mfu": mfu(
            model,
            sum(timed_tokens) / len(timed),
            examples.num_predicting_of(ids) / settings["num_steps"] if normalise == "vocabulary" else 0.0,
            median(timed),
        ),
    }


def train_ours(
    model: Any, examples: Examples, ids: np.ndarray, settings: dict[str, Any], device: str
) -> tuple[list[float], list[float], list[int]]:
    """(Seconds, loss, tokens through the model) of every step."""
    order = examples.take(ids)
    loop = TrainingSettings(
        num_epochs=1, batch_size=settings["batch_size"], learning_rate=1e-4, schedule="constant", warmup_fraction=0.0,
        precision=settings["precision"], normalise=settings["normalise"], evaluation_fraction=0.0, evaluate_every=1,
        checkpoint_every=10**9, seed=SEED,
    )  # fmt: skip
    marks, losses = [time.perf_counter()], []

    def step_done(metrics: dict[str, Any]) -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        losses.append(metrics["loss"])

    steps = np.split(epoch_order(np.arange(len(ids)), SEED, 0), settings["num_steps"])
    choices = settings["choices"]
    sizes = sizes_for(model, loop.row_tokens, loop.pass_tokens, device=torch.device(device))
    train(model, order, loop, checkpointer=NoCheckpoints(), report=step_done, choices=choices, device=device)
    tokens = [sum(batch.tokens.numel() for batch in passes(order, step, **sizes._asdict())) for step in steps]
    return list(np.diff(marks)), losses, tokens


def train_theirs(
    model: Any, examples: Examples, ids: np.ndarray, settings: dict[str, Any], device: str
) -> tuple[list[float], list[float], list[int]]:
    """The same of Hugging Face's `Trainer`."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    marks, losses, tokens = [time.perf_counter()], [], []
    rows = []
    for i in ids[epoch_order(np.arange(len(ids)), SEED, 0)]:  # the order in which ours takes them
        example = examples.take(ids=np.array([i]))
        asked, answer = example.query_tokens.tolist(), example.answer_tokens.tolist()
        input_ids = [*examples.prefixes[examples.task[i]], *asked, *answer]
        rows.append({"input_ids": input_ids, "labels": [-100] * (len(input_ids) - len(answer)) + answer})

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in batch)
        tokens.append(length * len(batch))
        fill = {"input_ids": 0, "labels": -100}
        padded = {
            key: torch.tensor([row[key] + [value] * (length - len(row[key])) for row in batch])
            for key, value in fill.items()
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in batch])
        return {**padded, "attention_mask": (torch.arange(length)[None] < lengths[:, None]).long()}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float] | None = None, **____: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(rows)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=settings["batch_size"], num_train_epochs=1, learning_rate=1e-4,
            lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.95,
            max_grad_norm=1.0, optim="adamw_torch_fused", bf16=settings["precision"] == "bf16", use_cpu=device == "cpu",
            logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        InOrder(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()
    return list(np.diff(marks)), losses, tokens


SIDES = {"ours": train_ours, "trainer": train_theirs, "ours, sdpa": train_ours, "ours, allowed": train_ours}


def mfu(model: Any, tokens_per_step: float, targets_per_step: float, step_s: float) -> float | None:
    """The share of the device's peak that the model's products reach; None where the peak is not known."""
    peak = peak_flops(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return Cost(model).flops(tokens_per_step, targets_per_step) / step_s / peak if peak else None


if __name__ == "__main__":
    main()

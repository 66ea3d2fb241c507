"""Trains a model under Ray Train (FSDP2 with several workers): the retriever from queries/ and docids/ into retriever/, or a
generator from pairs into tuning.out. `zerogr train CONFIG [--recipe NAME]`"""

from __future__ import annotations

import argparse
import logging
import os
import time
import uuid
from functools import partial
from typing import Any

from jobs.cluster import cause_of, ray_session, share_of_cpus
from jobs.command import run_module
from jobs.driving import driving
from jobs.examples import publish_examples
from jobs.stages import rebuild, run_stage
from jobs.tables import print_stages
from jobs.termination import fault_on_sigterm
from zerogr.config.file import validate_config
from zerogr.config.tree import Config
from zerogr.errors import Fault, UserError
from zerogr.index.driver import ticket_of, working_under
from zerogr.index.index import Index, StageRecord
from zerogr.index.stage import STAGES, kind_of
from zerogr.store import storage
from zerogr.training.checkpoints import ATTEMPTS, CHECKPOINTS, latest_step
from zerogr.training.recipes import RECIPES
from zerogr.training.recipes.recipe import run_recipe

logger = logging.getLogger(__name__)
OUTCOME, ENDING = "outcome.json", "ending.json"
"""What the workers have to say at the end: the stage's counts, or {"mistake": a sentence for the user}. And what the driver
has to say when it is told to end."""
PATIENCE_S = 120.0
"""How long a driver that was told to end waits for a checkpoint."""
GATHERING_S = 4 * 3600
"""How long ranks wait for each other: a machine that joins fetches all examples first. Ray notices a lost one."""


def run(config: Config, recipe: str = "retriever") -> StageRecord:
    """Runs the stage of a recipe."""
    chosen = RECIPES[recipe](config)
    build = partial(_build, recipe=recipe)
    return run_stage(STAGES[chosen.stage], config, chosen.inputs(), build)


def _build(config: Config, index: Index, *, recipe: str) -> dict[str, Any]:
    [folder] = STAGES[recipe].work
    compute = config.compute
    with ray_session():
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        if recipe == "retriever":
            publish_examples(config, index)
        has_gpu = compute.num_gpus_per_trainer > 0
        num_threads = share_of_cpus(compute.num_cpus_per_trainer, compute.most_training_workers)
        workers = compute.num_training_workers
        trainer = TorchTrainer(
            train_on_worker,
            train_loop_config={"recipe": recipe, "num_threads": num_threads, **_of_run(config, index)},
            torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo", timeout_s=GATHERING_S),
            scaling_config=ScalingConfig(
                num_workers=workers if isinstance(workers, int) else (workers[0], workers[1]),
                use_gpu=has_gpu,
                resources_per_worker={
                    "CPU": num_threads if os.environ.get("RAY_ADDRESS") else 1,
                    "GPU": compute.num_gpus_per_trainer,
                },
            ),
            run_config=RunConfig(
                name=f"run-{uuid.uuid4().hex[:8]}",  # resuming is ours, from the newest checkpoint in the index
                storage_path=index.path(folder, ATTEMPTS),
                failure_config=FailureConfig(
                    max_failures=compute.max_retries, max_preemption_failures=compute.max_preemptions
                ),
            ),
        )
        outcome_file = index.path(folder, OUTCOME)
        for leftover in (OUTCOME, ENDING):
            storage.delete(index.path(folder, leftover))
        try:
            with fault_on_sigterm(partial(_wait_for_checkpoint, index.path(folder))):
                trainer.fit()
        except SystemExit:  # Ray Train's own answer to Ctrl-C, which says nothing
            raise KeyboardInterrupt from None
        except TrainingFailedError as error:
            if not storage.exists(outcome_file):
                logger.error("training failed", exc_info=error)
                raise Fault(
                    f"{recipe}: training gave up, the last time with {_cause(error)}; the newest checkpoint is kept, "
                    "and the same command goes on from there"
                ) from error
    outcome: dict[str, Any] = storage.read_json(outcome_file)
    storage.delete(outcome_file)
    storage.delete(index.path(folder, ATTEMPTS))
    if "mistake" in outcome:  # without a checkpoint nothing is left that would bind the stage to this configuration
        raise UserError(outcome["mistake"])
    storage.delete(index.path(folder))
    return outcome


def _of_run(config: Config, index: Index) -> dict[str, Any]:
    """Returns what every worker of a run is told."""
    return {"config": config.model_dump(mode="json"), "ticket": ticket_of(index)}


def _wait_for_checkpoint(folder: str) -> str:
    """Tells the workers that the driver is to end; returns what is kept: their last checkpoint, if it comes in time."""
    latest = storage.join(folder, CHECKPOINTS)
    before, deadline = latest_step(latest), time.monotonic() + PATIENCE_S
    logger.warning("told to end; waiting up to %.0f s for a checkpoint", PATIENCE_S)
    storage.write_json(storage.join(folder, ENDING), {})
    is_done = False
    while (step := latest_step(latest)) == before and not is_done and time.monotonic() < deadline:
        time.sleep(0.1)
        is_done = storage.exists(storage.join(folder, OUTCOME))
    return f"the checkpoint after step {step} is kept" if step else "no checkpoint came in time"


def _is_ending(flag: str, rank: int) -> bool:
    """Whether a worker's machine is about to be taken away, or the driver was told to end; all ranks must ask together."""
    from ray import train as ray_train

    is_preempted = ray_train.get_preemption_info() is not None  # waits for all ranks
    return is_preempted or (rank == 0 and storage.exists(flag))


def _cause(error: Exception) -> str:
    """Returns what the first worker that failed had to say, or what Ray Train has."""
    failures = getattr(error, "worker_failures", {})
    return cause_of(failures[min(failures)] if failures else error)


def train_on_worker(arguments: dict[str, Any]) -> None:
    """Runs in every worker: trains, and publishes the model."""
    os.environ["OMP_NUM_THREADS"] = str(arguments["num_threads"])
    import torch
    from ray import train as ray_train
    from ray.train.torch import get_device

    logging.getLogger("ray.train").setLevel(logging.ERROR)  # Ray Train has set its own levels by now
    torch.set_num_threads(arguments["num_threads"])
    recipe = RECIPES[arguments["recipe"]](validate_config(arguments["config"]))
    [folder] = STAGES[recipe.stage].work
    context, device = ray_train.get_context(), get_device()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    outcome_file = recipe.index.path(folder, OUTCOME)
    if storage.exists(outcome_file):
        return
    try:
        with working_under(arguments["ticket"]):
            outcome = run_recipe(
                recipe,
                recipe.index.path(folder, CHECKPOINTS),
                is_ending=partial(_is_ending, recipe.index.path(folder, ENDING), rank),
                device=device,
                rank=rank,
                num_ranks=num_ranks,
            )
    except (UserError, FloatingPointError) as error:
        # Ray takes what is raised for a fault of the machine, and tries again: the next group sees the mistake and leaves.
        outcome = {"mistake": f"{recipe.stage}: {error}"}
        storage.write_json(outcome_file, outcome)
        if num_ranks > 1:
            raise  # the others may be waiting for this rank
        return
    if rank == 0:
        storage.write_json(outcome_file, outcome)


def command(options: argparse.Namespace) -> None:
    """Trains, and prints what was done."""
    place = kind_of(STAGES[options.recipe]).place(options.config)
    with driving(place, wait=options.wait):
        rebuild(options.config, options.rebuild)
        record = run(options.config, options.recipe)
    print_stages(place, {options.recipe: record})


if __name__ == "__main__":
    run_module("train", command)

"""Reads queries/ and docids/; trains the retriever under Ray Train (FSDP2 with several workers); writes retriever/.
`zerogr train CONFIG`"""

from __future__ import annotations

import logging
import os
import uuid
from typing import Any

from jobs.cluster import ray_session, share_of_cpus
from jobs.stages import run_stage
from zerogr import storage
from zerogr.config import Config, validate_config
from zerogr.errors import UserError
from zerogr.index import Index, StageRecord
from zerogr.training.stage import retriever_inputs

logger = logging.getLogger(__name__)
FOLDER = "work/training"
OUTCOME = "outcome.json"
"""What the workers have to say at the end: the stage's counts, or {"mistake": a sentence for the user}."""


def run(config: Config) -> StageRecord:
    """Runs the retriever stage."""
    return run_stage("retriever", config, retriever_inputs(config, Index(config.index)), _build)


def _build(config: Config, index: Index) -> dict[str, Any]:
    compute = config.compute
    with ray_session():
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        has_gpu = compute.num_gpus_per_trainer > 0
        num_threads = share_of_cpus(compute.num_cpus_per_trainer, compute.num_training_workers)
        trainer = TorchTrainer(
            train_on_worker,
            train_loop_config={"config": config.model_dump(mode="json"), "num_threads": num_threads},
            torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=compute.num_training_workers,
                use_gpu=has_gpu,
                resources_per_worker={
                    "CPU": num_threads if os.environ.get("RAY_ADDRESS") else 1,
                    "GPU": compute.num_gpus_per_trainer,
                },
            ),
            run_config=RunConfig(
                name=f"run-{uuid.uuid4().hex[:8]}",  # resuming is ours, from the newest checkpoint in the index
                storage_path=index.path(FOLDER, "ray"),
                failure_config=FailureConfig(max_failures=compute.max_retries),
            ),
        )
        trainer.fit()
    outcome: dict[str, Any] = storage.read_json(index.path(FOLDER, OUTCOME))
    storage.delete(index.path(FOLDER, OUTCOME))
    storage.delete(index.path(FOLDER, "ray"))
    if "mistake" in outcome:  # without a checkpoint nothing is left that would bind the stage to this configuration
        raise UserError(outcome["mistake"])
    storage.delete(index.path(FOLDER))
    return outcome


def train_on_worker(arguments: dict[str, Any]) -> None:
    """Runs in every worker: trains, and publishes the retriever."""
    os.environ["OMP_NUM_THREADS"] = str(arguments["num_threads"])
    import torch
    from ray import train as ray_train
    from ray.train.torch import get_device

    from zerogr.training.checkpoints import StorageCheckpointer
    from zerogr.training.loop import train
    from zerogr.training.stage import load_base, load_examples, publish_retriever, training_settings

    logging.getLogger("ray.train").setLevel(logging.ERROR)  # Ray Train has set its own levels by now
    torch.set_num_threads(arguments["num_threads"])
    config = validate_config(arguments["config"])
    index, context, device = Index(config.index), ray_train.get_context(), get_device()
    rank, num_ranks = context.get_world_rank(), context.get_world_size()
    try:
        model, chat = load_base(config, device)
        outcome = train(
            model,
            load_examples(index, chat),
            training_settings(config),
            checkpointer=StorageCheckpointer(index.path(FOLDER, "checkpoints"), rank=rank),
            report=lambda metrics: ray_train.report(metrics),
            device=device,
            rank=rank,
            num_ranks=num_ranks,
        )
        publish_retriever(config, index, model, rank=rank)
    except (UserError, FloatingPointError) as error:
        # Raised here, it would be taken for a fault of the machine and tried again; every rank meets the same mistake.
        outcome = {"mistake": str(error)}
    if rank == 0:
        storage.write_json(index.path(FOLDER, OUTCOME), outcome)


if __name__ == "__main__":
    from jobs.cli import run_module

    run_module("train")

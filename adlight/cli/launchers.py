"""What the launchers of conf/hydra/launcher/ need from a training, and which settings cannot work with them."""

import os
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from adlight.types import UserError

if TYPE_CHECKING:  # it takes seconds: not for --help
    import pytorch_lightning as pl

MAX_DEVICES = 16  # devices of a machine, or processes on its CPU if it has fewer cores


def gpus_per_node(accelerator: str, devices: int) -> int | None:
    """Return how many GPUs a node gives to a Slurm job: one for each process, none for `trainer=cpu`."""
    return devices if accelerator in ("auto", "cuda", "gpu") else None


OmegaConf.register_new_resolver("gpus_per_node", gpus_per_node, replace=True)


def check_launcher(config: DictConfig) -> None:
    """Raise a UserError if a launcher cannot run a training, before the first job; warn if it does so badly."""
    choices, trainer = config.hydra.runtime.choices, config.trainer
    launcher = choices.get("hydra/launcher")
    if launcher == "slurm" and choices.get("trainer") == "slurm":  # it would ask the login node for its number of tasks
        raise UserError(
            "trainer=slurm is for srun; hydra/launcher=slurm starts the processes itself: leave trainer=slurm out and "
            "give trainer.devices=<a node's> trainer.num_nodes=<nodes> trainer.strategy=ddp"
        )
    if launcher == "slurm" and not (isinstance(trainer.devices, int) and trainer.devices > 0):
        raise UserError(
            f"trainer.devices={trainer.devices}: hydra/launcher=slurm starts one process per device and must know how "
            "many: trainer.devices=<number>"
        )
    if launcher == "cores" and config.hydra.launcher.n_jobs in (0, None):
        raise UserError("hydra.launcher.n_jobs must be a number of jobs at once, or -1 for one per core, and not 0")
    if launcher == "cores" and trainer.accelerator != "cpu" and _count_gpus():
        print(
            "hydra/launcher=cores is for CPUs: all its jobs share the first GPU. Choose trainer=cpu, or "
            "hydra/launcher=ray_local hydra.launcher.ray.remote.num_gpus=1",
            flush=True,
        )


def check_strategy(trainer: "pl.Trainer", strategy: str) -> None:
    """Raise a UserError if a trainer cannot start its processes here, or min_epochs exceeds max_epochs."""
    if (least := trainer.min_epochs or 0) > (most := trainer.max_epochs or 0):
        raise UserError(f"trainer.min_epochs={least} is more than trainer.max_epochs={most}: lower it")
    if strategy.endswith(("_spawn", "_fork", "_notebook")):
        raise UserError(f"trainer.strategy={strategy}: use ddp, also in a sweep")
    if trainer.num_devices > max(MAX_DEVICES, os.cpu_count() or 1):
        raise UserError(f"trainer.devices={trainer.num_devices}: this machine does not have that many")
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and not (environment and environment.creates_processes_externally):
        raise UserError(f"trainer.num_nodes={trainer.num_nodes} needs Slurm: trainer=slurm or hydra/launcher=slurm")


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()

"""Several processes for one job of a sweep: one for each of its devices."""

import os
import signal
import socket
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from omegaconf import DictConfig

from adlight.cli import main as cli
from adlight.types import UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl

PATIENCE = 10  # seconds that the others have to end by themselves when one of the processes has failed


def must_be_spawned(trainer: "pl.Trainer") -> bool:
    """Whether a job has several devices, and nothing outside (srun, or we) has started a process for each."""
    if trainer.world_size == 1:
        return False
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is None or not environment.creates_processes_externally


def spawn(config: DictConfig, count: int) -> None:
    """Train what `config` describes in `count` processes of this machine, and wait for them.

    Lightning's ddp starts its other processes by the command line, which would start the whole sweep again in each;
    its ddp_spawn brings back little of what a process has computed, and starts them again for the test. Here each
    process does the whole job as one of a single run's would, and what it found out lies in the run folder.

    Raises:
        UserError: what one of them raised that a user can mend.
        RuntimeError: any other end of one of them, with its traceback.
    """
    import torch.multiprocessing as mp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"WORLD_SIZE": str(count), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    errors = mp.get_context("spawn").SimpleQueue()
    arguments = (config, HydraConfig.instance().cfg, environment, errors)
    context = mp.start_processes(work, arguments, count, join=False)
    try:
        while not context.join(grace_period=PATIENCE):
            pass
    except KeyboardInterrupt:
        stop(context.processes)
        raise
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        if errors.empty():
            raise RuntimeError(f"a process of the job ended: {error}") from error
        line, text = errors.get()  # of the first that failed, and so the cause of the others' failures
        if line is None:
            raise RuntimeError(text) from error
        raise UserError(line) from error


def stop(processes: list[Any]) -> None:
    """End processes as Ctrl-C does, which reaches them by itself from a terminal only."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(PATIENCE)
        process.kill()


def work(rank: int, config: DictConfig, hydra: DictConfig, environment: dict[str, str], errors: Any) -> None:
    """What each process does: the job, with the environment by which Lightning tells a process which one it is."""
    os.environ.update(environment, LOCAL_RANK=str(rank))
    cli.quiet()
    setup_globals()
    HydraConfig.instance().cfg = hydra  # type: ignore[assignment]
    if rank == 0:
        configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
    try:
        with cli.dashboard_finished():
            import_module("adlight.train").train(config)
    except Exception as error:
        line = cli.explain(error)
        errors.put((line, None if line else f"process {rank}: {type(error).__name__}: {cli.first_line(error)}"))
        raise
    except (KeyboardInterrupt, SystemExit):  # to the parent some of them would look like a good end
        errors.put((None, f"process {rank} was stopped from outside"))
        sys.exit(130)

"""Train one detector at several sites that keep their images: `adlight federate 'sites=[[bottle],[screw]]'`."""

import logging
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from adlight.cli import main as cli
from adlight.cli.arguments import task_overrides
from adlight.cli.errors import is_interruption
from adlight.cli.resume import federation_advice
from adlight.cli.words import continue_in, is_multirun, require, shows_info, value_of
from adlight.runs import provenance
from adlight.runs.config import instantiate_node, require_nodes
from adlight.runs.federation import FederationFolder, site_names
from adlight.runs.overrides import choose_none
from adlight.types import UserError

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_LOG_LEVEL": "ERROR", "RAY_USAGE_STATS_ENABLED": "0"}  # read on import
MAY_CHANGE = ("rounds", "test_rounds", "cpus", "gpus", "app")  # on resume


def federate(config: DictConfig) -> None:
    """Run a federation on this machine by Flower's simulation, or write its Flower app.

    Raises:
        UserError: The settings cannot be federated, a site failed, or Flower is not installed.
    """
    folder = FederationFolder(HydraConfig.get().runtime.output_dir)
    if resumed := bool(config.resume):
        config = _resumed_config(folder, config)
    _check(config)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # logs when Flower imports it
    try:
        from adlight.federated import flower
    except ImportError as error:
        raise UserError(f"federated training needs {error.name}: pip install 'adlight[federated]'") from error
    if resumed:
        folder.write_config(config)
    else:
        folder.begin(provenance.describe(config.seed))
    print(f"federation: {folder}", flush=True)
    try:
        if config.app is not None:
            flower.write_app(Path(config.app), folder)
            print(f"app: start the SuperLink and a SuperNode at each site, then: flwr run {config.app}")
        else:
            flower.simulate(folder, config.cpus, config.gpus)
    except (KeyboardInterrupt, SystemExit) as error:
        if not is_interruption(error):
            raise
        raise KeyboardInterrupt(federation_advice(folder)) from error
    except UserError as error:
        raise UserError(f"{error}. {federation_advice(folder)}") from error


def _check(config: DictConfig) -> None:
    """Check that the settings can be federated, before anything expensive."""
    import torch

    from adlight.federated.weights import check_model
    from adlight.runs.checks import check_names, check_settings
    from adlight.runs.programs import check_values

    check_values(config)
    require_nodes(config)
    check_names(config)
    check_settings(config)
    site_names(config)
    trainer = config.trainer
    if trainer.devices != 1 or trainer.num_nodes != 1:
        raise UserError(f"trainer.devices={trainer.devices}: a site trains on one device: set trainer=default or cpu")
    if config.cpus > (cores := os.cpu_count() or 1) or config.gpus > torch.cuda.device_count():
        available = f"{cores} CPUs and {torch.cuda.device_count()} GPUs"
        raise UserError(f"cpus={config.cpus} gpus={config.gpus} for each site: this machine has {available}")
    check_model(instantiate_node(config.model))


def _resumed_config(folder: FederationFolder, new: DictConfig) -> DictConfig:
    """Read the config of a resumed federation and change the settings that may change; refuse all others."""
    changed = {word.partition("=")[0] for word in task_overrides("resume", "sites")}
    if others := sorted(changed - set(MAY_CHANGE)):
        raise UserError(f"{others[0]} cannot change on resume: only {', '.join(MAY_CHANGE)} can")
    config = folder.config()
    config.update({name: new[name] for name in changed})
    return config


def arguments(argv: list[str]) -> list[str]:
    """Check the arguments before a folder is created; a resumed federation keeps its folder."""
    argv = [choose_none(word) for word in argv]
    if shows_info(argv):
        return argv
    if is_multirun(argv):
        raise UserError("a federation is a single training: leave out -m and sweep=")
    if resume := value_of(argv, "resume"):
        FederationFolder(resume).note()
        if value_of(argv, "sites") is not None:
            raise UserError(f"sites cannot change on resume: leave out sites=, {resume} has them")
        return ["sites=[]", *continue_in(argv, resume)]
    require(argv, "sites", "federate 'sites=[[bottle],[screw]]' ...")
    return argv


def main() -> None:
    """Run as a program."""
    cli.run(lambda config: cli.run_logged(federate, config, records=True), "federate", arguments)


if __name__ == "__main__":
    main()

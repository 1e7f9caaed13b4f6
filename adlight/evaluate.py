"""Score a finished run again, without training: `python -m adlight.evaluate run=<folder> [overrides]`."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from adlight.cli import main as cli
from adlight.runs import provenance
from adlight.runs.config import CONF
from adlight.runs.folder import RunFolder
from adlight.train import build, log_config, test
from adlight.types import UserError

CHANGES_SCORES = ("model", "dataset", "calibration.image", "calibration.pixel", "trainer=", "trainer.precision")
OWN = ("run", "ckpt")  # settings of this command; everything else changes the run's config


def evaluate(config: DictConfig) -> dict[str, float]:
    """Test a run's checkpoint and write the results into a folder of their own. -> every metric, by name.

    Without overrides the stored threshold is used and the run's numbers come out again. Overrides of the model, the
    data or a threshold may change what a normal score is, so the thresholds are then calibrated anew, on the held-out
    normal images.
    """
    from adlight.reports.tables import print_defects

    run = RunFolder(config.run)
    overrides = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
    overrides = [word for word in overrides if word.partition("=")[0] not in OWN]
    saved = run.config(overrides)
    OmegaConf.set_struct(saved, False)
    if "objective" in saved.model:
        saved.model.objective = None  # nothing is trained: no LPIPS weights are needed
    if not any(word.startswith("logger=") for word in overrides):  # a run at W&B for each evaluation is asked for
        saved.logger = None
    elif saved.logger:
        saved.logger.pop("csv", None)
    data, module, trainer = build(saved)
    path = run.checkpoint(config.ckpt or saved.ckpt)
    metadata = provenance.describe(saved.seed) | {"run": str(run)}
    log_config(trainer, saved)
    calibrate = any(word.startswith(CHANGES_SCORES) for word in overrides)
    metrics = test(RunFolder(saved.run_dir), path, trainer, module, data, metadata, calibrate)
    if trainer.is_global_zero and module.results is not None:
        print_defects(module.results)
    return metrics


def arguments(argv: list[str]) -> list[str]:
    """Mark overrides of the run's config as additions for Hydra, whose own config here knows only `run` and `ckpt`.

    Raises:
        UserError: `run` is missing or no run folder.
    """
    if {"-h", "--help", "--hydra-help", "--version"} & set(argv):
        return argv
    run = cli.value_of(argv, "run")
    if run is None:
        raise UserError("say which run: python -m adlight.evaluate run=<run folder>")
    RunFolder(run).config()
    words = []
    for word in argv:
        if word.startswith("~"):  # there is nothing yet that Hydra could delete
            word = f"{word[1:].partition('=')[0]}=null"
        key = word.partition("=")[0]
        own = key in OWN or word.startswith(("-", "+", "hydra."))
        group = (CONF / key).is_dir()
        words.append(word if own else f"+{word}" if group else f"++{word}")
    return words


def main() -> None:
    """Entry point."""
    cli.run(evaluate, "evaluate", arguments)


if __name__ == "__main__":
    main()

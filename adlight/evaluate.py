"""Score a finished run again, without training: `python -m adlight.evaluate run=<folder> [overrides]`."""

from omegaconf import DictConfig, OmegaConf

from adlight.cli import main as cli
from adlight.cli.alone import run_alone
from adlight.cli.arguments import OWN_OF_EVALUATE, evaluate_arguments, task_overrides
from adlight.runs import provenance
from adlight.runs.config import drop_objective, require_nodes
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import changes_scores
from adlight.runs.trust import check_places
from adlight.train import build, test


def evaluate(config: DictConfig) -> dict[str, float]:
    """Test a run's checkpoint and write the results into a folder of their own. -> every metric, by name.

    Without overrides the stored threshold is used and the run's numbers come out again. Overrides of the model, the
    data or a threshold may change what a normal score is, so the thresholds are then calibrated anew, on the held-out
    normal images.
    """
    from adlight.reports.tables import print_defects
    from adlight.runs.programs import EvaluateSettings, check_values

    check_values(EvaluateSettings, config)
    run = RunFolder(config.run)
    overrides = task_overrides(*OWN_OF_EVALUATE)
    saved = run.config(overrides)
    OmegaConf.set_struct(saved, False)
    require_nodes(saved)
    drop_objective(saved)
    if not any(word.startswith("logger=") for word in overrides):  # a run at W&B for each evaluation is asked for
        saved.logger = None
    elif saved.logger:
        saved.logger.pop("csv", None)
    check_places(saved, run.config_path, overrides)
    data, module, trainer = build(saved)
    path = run.checkpoint(config.ckpt or saved.ckpt)
    metadata = provenance.describe(saved.seed) | {"run": str(run)}
    provenance.log_config(trainer, saved)
    results, calibrate = RunFolder(saved.run_dir), changes_scores(overrides)
    metrics = test(results, path, trainer, module, data, metadata, calibrate=calibrate)
    if trainer.is_global_zero and module.results is not None:
        print_defects(module.results)
    return metrics


def main() -> None:
    """Run as a program."""
    cli.run(lambda config: run_alone(evaluate, config), "evaluate", evaluate_arguments)


if __name__ == "__main__":
    main()

"""Score a finished run again, without training: `adlight evaluate run=<folder> [overrides]`."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from adlight.cli import main as cli
from adlight.cli.arguments import task_overrides
from adlight.cli.resume import use_advice
from adlight.cli.words import mark_overrides, require
from adlight.runs import provenance
from adlight.runs.config import CONF, drop_objective, require_nodes
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import changes_scores, choose_none
from adlight.runs.restore import require_run
from adlight.runs.trust import check_places
from adlight.runs.weights import write_changes
from adlight.train import build, test
from adlight.types import UserError

OWN_SETTINGS = ("run", "ckpt")  # all others change the run's config


def evaluate(config: DictConfig) -> dict[str, float]:
    """Test a run's checkpoint and write the results into a folder of their own, which is a detector too. -> metrics.

    Without overrides the stored threshold is used and the run's numbers come out again. Overrides of the model, the
    data or a threshold may change what a normal score is, so the thresholds are then calibrated anew, on the held-out
    normal images.
    """
    from adlight.reports.tables import print_defects
    from adlight.runs.programs import check_values

    check_values(config)
    run = RunFolder(config.run)
    overrides = task_overrides(*OWN_SETTINGS)
    saved, choices = run.config(overrides), run.choices()
    OmegaConf.set_struct(saved, False)
    require_nodes(saved)
    path = run.checkpoint(config.ckpt or saved.ckpt)
    tested = saved.copy()
    names = {run.best_checkpoint.resolve(): "best", run.last_checkpoint.resolve(): "last"}  # these follow a moved run
    tested.ckpt = names.get(path.resolve(), str(path.absolute()))
    drop_objective(saved)
    if not any(word.startswith("logger=") for word in overrides):  # a run at W&B for each evaluation is asked for
        saved.logger = None
    elif saved.logger:
        saved.logger.pop("csv", None)
    check_places(saved, run.config_path, overrides)
    data, module, trainer = build(saved)
    metadata = provenance.describe(saved.seed) | {"run": str(run)}
    provenance.log_config(trainer, saved)
    results, calibrate = RunFolder(saved.run_dir), changes_scores(overrides)

    def make_detector() -> None:
        data.notes += provenance.describe_trained(run, data)
        write_changes(results.calibrated_checkpoint, module.state_dict(), path)
        tested.run = str(run.path.absolute())
        results.write_composed(tested, {**choices, **HydraConfig.get().runtime.choices})

    metrics = test(results, path, trainer, module, data, metadata, make_detector, calibrate)
    if trainer.is_global_zero and module.results is not None:
        print_defects(module.results)
        if calibrate or config.ckpt or any(word.startswith("calibration") for word in overrides):
            print(use_advice(results))
    return metrics


def arguments(argv: list[str]) -> list[str]:
    """Mark overrides of the run's config as additions, as the config that Hydra composes has only `OWN_SETTINGS`."""
    run = RunFolder(require(argv, "run", "evaluate run=<run folder>"))
    run.config()  # raises if it is not trusted
    require_run(run)
    run.read_training()
    words = []
    for word, is_override in mark_overrides(argv):
        if is_override and word.startswith("~"):  # Hydra's config has nothing to delete yet
            word = f"{word[1:].partition('=')[0]}=null"
        word = choose_none(word)
        key = word.partition("=")[0]
        if key.lstrip("+") in ("resume", "resume_sweep"):
            raise UserError(f"{word} is for adlight train: an evaluation is not resumed but repeated")
        if is_override and key not in OWN_SETTINGS and not word.startswith(("+", "hydra.")):
            word = f"+{word}" if (CONF / key).is_dir() else f"++{word}"
        words.append(word)
    return words


def main() -> None:
    """Run as a program."""
    cli.run(lambda config: cli.run_logged(evaluate, config, records=True), "evaluate", arguments)


if __name__ == "__main__":
    main()

"""Score a finished run again, without training: `adlight evaluate run=<folder> [overrides]`."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from adlight.cli import main as cli
from adlight.cli.arguments import task_overrides
from adlight.cli.resume import use_advice
from adlight.cli.words import mark_overrides, require
from adlight.runs import provenance
from adlight.runs.config import CONF, drop_objective, require_nodes
from adlight.runs.folder import RunFolder
from adlight.runs.overrides import changes_scores, choose_none
from adlight.runs.trust import check_places
from adlight.train import build, test
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.detection.module import AnomalyModule

OWN_SETTINGS = ("run", "ckpt")  # all others change the run's config


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
    overrides = task_overrides(*OWN_SETTINGS)
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
        for image, pixel in _usable_thresholds(overrides, module):
            print(use_advice(run, f"threshold={image!r}", f"pixel_threshold={pixel!r}"))
    return metrics


def _usable_thresholds(overrides: list[str], module: "AnomalyModule") -> set[tuple[float, float]]:
    """Return new thresholds that predict can be given: those of the run's scores, the same for all categories."""
    keys = [word.lstrip("+~") for word in overrides]
    thresholds = {module.calibration.of(name)[:2] for name in module.results.categories} if module.results else set()
    is_new = any(key.startswith(("calibration.image", "calibration.pixel", "calibration.per")) for key in keys)
    are_scores_new = any(key.startswith(("model", "dataset", "trainer")) for key in keys)
    return thresholds if is_new and not are_scores_new and len(thresholds) == 1 else set()


def arguments(argv: list[str]) -> list[str]:
    """Mark overrides of the run's config as additions, as the config that Hydra composes has only `OWN_SETTINGS`."""
    run = RunFolder(require(argv, "run", "evaluate run=<run folder>"))
    run.config()  # raises if it is not trusted
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
    cli.run(lambda config: cli.run_recorded(evaluate, config), "evaluate", arguments)


if __name__ == "__main__":
    main()

"""Predict for new images with a finished run: `adlight predict run=<folder> images=<file, folder or glob>`."""

import time
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from adlight.cli import main as cli
from adlight.cli.errors import is_interruption
from adlight.cli.resume import check_same_prediction, prediction_advice, resume_prediction
from adlight.cli.words import require, to_override, value_of
from adlight.prediction.batches import ResultWriter, Summary, load_detector, predict_batches
from adlight.prediction.ray import check_ray, predict_parts
from adlight.prediction.stream import ImageStream
from adlight.runs.exported import check_exists, folder_of, is_exported, weights_of
from adlight.runs.folder import RunFolder
from adlight.runs.predictions import PredictionFolder
from adlight.types import UserError, unknown_name

PICTURES = ("masks", "maps", "panels")


def predict(config: DictConfig) -> None:
    """Write tables and the requested pictures, then print a summary.

    Raises:
        UserError: there are no images, an image is unreadable (unless `on_bad_image=skip`) or of an unknown category,
            or a setting is out of range.
    """
    from adlight.runs.programs import check_values

    check_values(config)
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if config.engine == "ray":
        check_ray(settings)
    elif unused := [name for name in ("actors", "ray_address") if settings[name] is not None]:
        raise UserError(f"{unused[0]}={settings[unused[0]]} needs engine=ray: set that too, or leave it out")
    stream, pictures = ImageStream(str(config.images)), parse_pictures(str(config.save))
    stream.require()
    folder = PredictionFolder(HydraConfig.get().runtime.output_dir)
    if config.resume:
        check_same_prediction(folder, config)
    detector = load_detector(settings)
    detector.category_rule.check(stream)
    count, left_out = stream.survey()
    done, started = folder.begin(weights_of(config.run, config.ckpt), resume=bool(config.resume)), time.perf_counter()
    try:
        if config.engine == "ray":
            predict_parts(folder, stream, count - done, settings, pictures)
        else:
            rest, writer = folder.remaining(iter(stream)), ResultWriter(folder.path, pictures, stream)
            for entries in predict_batches(detector, rest, count - done, writer, config.on_bad_image):
                folder.add(entries)
    except UserError as error:
        raise UserError(prediction_advice(folder, str(error))) from error
    except (KeyboardInterrupt, SystemExit) as error:
        if not is_interruption(error):
            raise
        raise KeyboardInterrupt(prediction_advice(folder)) from error
    summary, rate = Summary(folder.entries()), (count - done) / (time.perf_counter() - started)
    folder.finish()
    summary.print(folder, pictures, rate)
    if detector.category_rule.by_looks:
        print(*detector.category_rule.classifier.describe())
    if left_out:
        print(left_out)


def parse_pictures(text: str) -> list[str]:
    """Parse the kinds of pictures to write, such as `masks,maps` or `none`."""
    kinds = [kind.strip("' \"") for kind in text.strip("[]").split(",")]
    if unknown := [kind for kind in kinds if kind not in (*PICTURES, "none", "null", "")]:
        raise UserError(unknown_name("save", unknown[0], (*PICTURES, "none")))
    return [kind for kind in PICTURES if kind in kinds]


def arguments(argv: list[str]) -> list[str]:
    """Check `run` and `images` before a folder is created."""
    if value_of(argv, "resume"):
        return resume_prediction(argv)
    example = "predict run=<run folder> images=<file, folder or glob>"
    run, images = (require(argv, key, example) for key in ("run", "images"))
    check_exists(run)
    ImageStream(images).require()
    kinds = parse_pictures(value_of(argv, "save") or "none")
    if not is_exported(run):
        return argv
    if "panels" in kinds:
        raise UserError(f"save=panels shows reconstructions, which {run} does not make: save=masks,maps")
    folder = RunFolder(folder_of(run)).predictions_folder / "${now:%Y%m%d-%H%M%S-%f}"
    return argv if value_of(argv, "hydra.run.dir") else [*argv, to_override("hydra.run.dir", folder)]


def main() -> None:
    """Run as a program."""
    cli.run(lambda config: cli.run_logged(predict, config), "predict", arguments)


if __name__ == "__main__":
    main()

"""Predict for new images by a finished run: `python -m adlight.predict run=<folder> images=<file, folder or glob>`."""

import csv
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from adlight.cli import main as cli
from adlight.cli.arguments import quote_values, shows_help, value_of
from adlight.data.images import read_image, to_channels
from adlight.data.listing import describe_left_out, find_images, scan
from adlight.detection.pictures import colour_ceiling, draw_overlay, draw_panel
from adlight.runs.checks import check_values
from adlight.runs.folder import RunFolder
from adlight.runs.tables import COLUMNS, prediction_cells
from adlight.types import Prediction, Unreadable, UserError, unknown_name

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.images import PreparedImage
    from adlight.detector import Detector

PICTURES = ("masks", "maps", "panels")
SummaryKey = tuple[str, float, float, bool]  # source of the thresholds, of images, of pixels, anomalous


def predict(config: DictConfig) -> None:
    """Write `predictions.csv` and the pictures asked for, then print a summary.

    Raises:
        UserError: no images, one that cannot be read (unless `on_bad_image=skip`) or whose category is unknown, or a
            setting out of range.
    """
    from adlight.detector import Detector
    from adlight.runs.programs import PredictSettings

    check_values(PredictSettings, config)
    paths, pictures = find_images(str(config.images)), parse_pictures(str(config.save))
    names = name_pictures(paths, Path(config.images).expanduser())
    detector = Detector.load(
        config.run, config.ckpt, config.device, batch_size=config.batch_size, category=config.category
    )
    for name in ("threshold", "pixel_threshold"):
        if config[name] is not None:
            setattr(detector, name, config[name])
    detector.category_rule.check(paths)
    folder = Path(HydraConfig.get().runtime.output_dir)
    started = time.perf_counter()
    counts, skipped = write_predictions(detector, names, folder, pictures, config.on_bad_image == "skip")
    rate = (len(paths) - len(skipped)) / (time.perf_counter() - started)
    print_summary(folder, pictures, counts, rate, skipped)
    if detector.category_rule.by_looks:
        print(*detector.category_rule.classifier.describe())
    if left_out := describe_left_out(scan(Path(config.images).expanduser())):
        print(left_out)


def write_predictions(
    detector: "Detector", names: dict[Path, str], folder: Path, pictures: list[str], skip: bool
) -> tuple[Counter[SummaryKey], list[str]]:
    """Predict for the images in `names`, write the table and the pictures, which have those names.

    Returns:
        Counts for the summary, and messages of the unreadable images that `skip` left out.

    Raises:
        UserError: an image cannot be read; the predictions so far lie in a `.part` file.
    """
    counts, skipped = Counter[SummaryKey](), list[str]()
    whole = RunFolder(folder).predictions_path
    part = whole.with_suffix(".part")  # a table that is not whole never has the whole one's name
    console = Console(stderr=True)
    with (
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        writer = csv.writer(file)
        writer.writerow(("path", *COLUMNS))
        batches = read_ahead(detector, list(names), pool)
        steps, hidden = -(-len(names) // detector.batch_size), not console.is_terminal
        for batch in track(batches, "predicting", steps, console=console, transient=True, disable=hidden):
            skipped += [found.error for found in batch.values() if isinstance(found, Unreadable)]
            if skipped and not skip:
                raise UserError(skipped[0])
            images = {path: found for path, found in batch.items() if not isinstance(found, Unreadable)}
            found = detector.predict(list(images.values()), "panels" in pictures) if images else []
            writer.writerows((path, *prediction_cells(one)) for path, one in zip(images, found, strict=True))
            counts.update((one.threshold_source, one.threshold, one.pixel_threshold, one.anomalous) for one in found)
            list(pool.map(partial(save, folder, pictures), images, found, [names[path] for path in images]))
    os.replace(part, whole)
    return counts, skipped


def read_ahead(
    detector: "Detector", paths: list[Path], pool: ThreadPoolExecutor
) -> Iterator[dict[Path, "PreparedImage | Unreadable"]]:
    """Decode images batch by batch on all cores, the next batch while this one is scored."""
    waiting: dict[Path, Future[PreparedImage | Unreadable]] = {}
    for start in range(0, len(paths) + detector.batch_size, detector.batch_size):
        coming = {path: pool.submit(detector.prepare, path) for path in paths[start : start + detector.batch_size]}
        if waiting:
            yield {path: future.result() for path, future in waiting.items()}
        waiting = coming


def save(folder: Path, pictures: list[str], path: Path, prediction: Prediction, name: str) -> None:
    """Write an image's pictures, each kind into a folder of its own."""
    assert prediction.mask is not None
    for kind in pictures:
        if kind == "masks":
            picture = Image.fromarray(prediction.mask.astype(np.uint8) * 255)
        else:
            image = to_channels(read_image(path), 3)
            picture = (draw_overlay if kind == "maps" else draw_panel)(image, prediction)
        target = folder / kind / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, compress_level=1)  # a fifth of the time for a tenth more space


def print_summary(
    folder: Path, pictures: list[str], counts: Counter[SummaryKey], rate: float, skipped: list[str]
) -> None:
    """Print how many images there were, how many are anomalous by which threshold, and where the results lie."""
    table = Table()
    for name in ("threshold of", "threshold", "images", "anomalous"):
        table.add_column(name, justify="left" if name == "threshold of" else "right")
    used = sorted({key[:3] for key in counts})
    for source, threshold, pixel_threshold in used:
        normal, anomalous = (counts[source, threshold, pixel_threshold, one] for one in (False, True))
        table.add_row(escape(source), f"{threshold:.6g}", str(normal + anomalous), str(anomalous))
    console = Console()
    console.print(table)
    found = f"{counts.total()} images, {len(skipped)} skipped, {rate:.1f} images/s"
    lines = [*(f"skipped: {one}" for one in skipped), found, f"predictions: {RunFolder(folder).predictions_path}"]
    if pictures:
        scale = ", ".join(dict.fromkeys(f"{colour_ceiling(one[2]):.3g}" for one in used))
        folders = ", ".join(str(folder / kind) for kind in pictures)
        lines.append(f"pictures: {folders} (colours from 0 to twice the pixel threshold: {scale})")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def name_pictures(paths: list[Path], base: Path) -> dict[Path, str]:
    """Name the images' pictures: relative to `base` or, if it is no folder, to the one that holds all images.

    The suffix goes, unless two names would then be the same.
    """
    if not base.is_dir():
        base = Path(os.path.commonpath([path.parent for path in paths]))
    short = {path: path.with_suffix("") for path in paths}
    count = Counter(short.values())
    return {path: str((short[path] if count[short[path]] == 1 else path).relative_to(base)) for path in paths}


def parse_pictures(text: str) -> list[str]:
    """Read the kinds of pictures to write from `masks,maps` or `none`."""
    kinds = [kind.strip("' \"") for kind in text.strip("[]").split(",")]
    unknown = [kind for kind in kinds if kind not in (*PICTURES, "none", "null", "")]
    if unknown:
        raise UserError(unknown_name("save", unknown[0], (*PICTURES, "none")))
    return [kind for kind in PICTURES if kind in kinds]


def arguments(argv: list[str]) -> list[str]:
    """Check what can be checked before a folder is made, and quote what Hydra's grammar would take apart.

    Raises:
        UserError: `run` or `images` is missing or holds nothing.
    """
    if shows_help(argv):
        return argv
    run, images, pictures = (value_of(argv, key) for key in ("run", "images", "save"))
    if run is None or images is None:
        raise UserError("say which: python -m adlight.predict run=<run folder> images=<file, folder or glob>")
    RunFolder(run).config()
    find_images(images)
    parse_pictures(pictures or "none")
    return quote_values(argv, "run", "images", "save")


def main() -> None:
    """Run as a program."""
    cli.run(predict, "predict", arguments)


if __name__ == "__main__":
    main()

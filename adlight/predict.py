"""Answer for new images with a finished run: `python -m adlight.predict run=<folder> images=<file, folder or glob>`."""

import csv
import glob
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
from rich.progress import Progress
from rich.table import Table

from adlight.cli import main as cli
from adlight.cli.arguments import quote_values, shows_help, value_of
from adlight.data.images import IMAGE_SUFFIXES, describe_folder, list_images, read_image, to_channels
from adlight.detection.pictures import colour_ceiling, overlay, panel
from adlight.runs.folder import RunFolder
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.detector import Detector, PreparedImage
    from adlight.types import Prediction

PICTURES = ("masks", "maps", "panels")
COLUMNS = ("path", "score", "threshold", "anomalous", "threshold_source", "pixel_threshold", "area", "boxes")
Decision = tuple[str, float, float, bool]  # whose thresholds, that of images, that of pixels, anomalous


def predict(config: DictConfig) -> None:
    """Write `predictions.csv` and the pictures asked for, then print a summary.

    Raises:
        UserError: no images, one that cannot be read (unless `on_bad_image=skip`), or a setting out of range.
    """
    from adlight.detector import Detector

    paths = find_images(str(config.images))
    names = relative_names(paths, Path(config.images).expanduser())
    pictures = wanted(str(config.save))
    if config.on_bad_image not in ("error", "skip"):
        raise UserError(f"on_bad_image={config.on_bad_image} is unknown: error or skip")
    detector = Detector.load(
        config.run, config.ckpt, config.device, batch_size=config.batch_size, category=config.category
    )
    for name in ("threshold", "pixel_threshold"):
        if config[name] is not None:
            setattr(detector, name, config[name])
    folder = Path(HydraConfig.get().runtime.output_dir)
    started = time.perf_counter()
    counts, skipped = answer_all(detector, names, folder, pictures, config.on_bad_image == "skip")
    rate = (len(paths) - len(skipped)) / (time.perf_counter() - started)
    summarise(folder, pictures, counts, rate, skipped)


def answer_all(
    detector: "Detector", names: dict[Path, str], folder: Path, pictures: list[str], skip: bool
) -> tuple[Counter[Decision], list[str]]:
    """Answer for every image and write it down. -> counts of decisions, and messages of unreadable images.

    Args:
        detector: gives the answers.
        names: the images, and what their pictures are called.
        folder: takes `predictions.csv` and a folder a kind of picture.
        pictures: kinds of pictures to write.
        skip: go on without the images that cannot be read.

    Raises:
        UserError: an image cannot be read; the answers so far lie in `predictions.part`.
    """
    counts, skipped = Counter[Decision](), list[str]()
    draw = partial(save, folder=folder, pictures=pictures)
    part = folder / "predictions.part"  # a table that is not whole never has the whole one's name
    console = Console(stderr=True)
    with part.open("w", newline="") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("images", total=len(names))
            for batch in read_ahead(detector, list(names), pool):
                messages = [found for _, found in batch if isinstance(found, str)]
                if messages and not skip:
                    raise UserError(messages[0])
                skipped += messages
                good = [(path, found) for path, found in batch if not isinstance(found, str)]
                answers = detector.predict([found for _, found in good]) if good else []
                for (path, _), answer in zip(good, answers, strict=True):
                    boxes = " ".join(",".join(map(str, box)) for box in answer.boxes)
                    decision = answer.score, answer.threshold, int(answer.anomalous), answer.threshold_source
                    writer.writerow([path, *decision, answer.pixel_threshold, answer.area, boxes])
                    counts[answer.threshold_source, answer.threshold, answer.pixel_threshold, answer.anomalous] += 1
                if pictures:
                    list(pool.map(draw, [path for path, _ in good], [names[path] for path, _ in good], answers))
                progress.advance(bar, len(batch))
    os.replace(part, RunFolder(folder).predictions_path)
    return counts, skipped


def read_ahead(
    detector: "Detector", paths: list[Path], pool: ThreadPoolExecutor
) -> Iterator[list[tuple[Path, "PreparedImage | str"]]]:
    """Decode images batch by batch on all cores, the next batch while this one is scored; a message if unreadable."""

    def read(path: Path) -> "PreparedImage | str":
        try:
            return detector.prepare(path)
        except UserError as error:
            return str(error)

    waiting: list[tuple[Path, Future[PreparedImage | str]]] = []
    for start in range(0, len(paths) + detector.batch_size, detector.batch_size):
        coming = [(path, pool.submit(read, path)) for path in paths[start : start + detector.batch_size]]
        if waiting:
            yield [(path, future.result()) for path, future in waiting]
        waiting = coming


def save(path: Path, name: str, answer: "Prediction", folder: Path, pictures: list[str]) -> None:
    """Write an image's pictures, each kind into a folder of its own."""
    assert answer.mask is not None
    ceiling = colour_ceiling(answer.pixel_threshold)
    for kind in pictures:
        if kind == "masks":
            picture = Image.fromarray(answer.mask.astype(np.uint8) * 255)
        else:
            image = to_channels(read_image(str(path)), 3)
            picture = overlay(image, answer, ceiling) if kind == "maps" else panel(image, answer, ceiling)
        target = folder / kind / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target, compress_level=1)  # a fifth of the time for a tenth more space


def summarise(folder: Path, pictures: list[str], counts: Counter[Decision], rate: float, skipped: list[str]) -> None:
    """Print how many images there were, how many are anomalous by which threshold, and where the answers lie."""
    table = Table()
    for name in ("threshold of", "threshold", "images", "anomalous"):
        table.add_column(name, justify="left" if name == "threshold of" else "right")
    used = sorted({decision[:3] for decision in counts})
    for one in used:
        anomalous = counts[*one, True]
        table.add_row(escape(one[0]), f"{one[1]:.6g}", str(anomalous + counts[*one, False]), str(anomalous))
    console = Console()
    console.print(table)
    lines = [f"skipped: {message}" for message in skipped]
    lines.append(f"{counts.total()} images, {len(skipped)} skipped, {rate:.1f} images/s")
    lines.append(f"answers: {RunFolder(folder).predictions_path}")
    if pictures:
        scale = ", ".join(dict.fromkeys(f"{colour_ceiling(one[2]):.3g}" for one in used))
        folders = ", ".join(str(folder / kind) for kind in pictures)
        lines.append(f"pictures: {folders} (colours from 0 to twice the pixel threshold: {scale})")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def find_images(text: str) -> list[Path]:
    """List the images that a file, a folder or a glob names, sorted.

    Raises:
        UserError: there are none; the text says where was looked for what.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = list_images(path)
    else:
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        found = [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES and match.is_file()]
    if not found:
        folder = path
        while not folder.is_dir():  # of a glob or a wrong path: the part that exists
            folder = folder.parent
        raise UserError(
            f"no images in {path.absolute()}: looked for files with {', '.join(sorted(IMAGE_SUFFIXES))}; "
            f"{folder.absolute()} holds {describe_folder(folder)}"
        )
    return found


def relative_names(paths: list[Path], base: Path) -> dict[Path, str]:
    """Names of the images' pictures: relative to `base` or, if it is no folder, to the one that holds all images.

    The suffix goes, unless two names would then be the same.
    """
    if not base.is_dir():
        base = Path(os.path.commonpath([path.parent for path in paths]))
    short = Counter(path.with_suffix("") for path in paths)
    return {
        path: str((path.with_suffix("") if short[path.with_suffix("")] == 1 else path).relative_to(base))
        for path in paths
    }


def wanted(text: str) -> list[str]:
    """Kinds of pictures to write, from `masks,maps` or `none`."""
    kinds = [kind.strip("' \"") for kind in text.strip("[]").split(",")]
    unknown = [kind for kind in kinds if kind not in (*PICTURES, "none", "null", "")]
    if unknown:
        raise UserError(f"save={text}: {unknown[0]} is unknown, there are {', '.join(PICTURES)}, or none")
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
        raise UserError(
            "say which run and which images: python -m adlight.predict run=<folder> images=<file or folder>"
        )
    RunFolder(run).config()
    find_images(images)
    if pictures is not None:
        wanted(pictures)
    return quote_values(argv, "run", "images", "save")


def main() -> None:
    """Entry point."""
    cli.run(predict, "predict", arguments)


if __name__ == "__main__":
    main()

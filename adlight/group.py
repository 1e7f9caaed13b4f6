"""Group the anomalies that a finished run detects: `adlight group run=<folder> [images=<folder>]`."""

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adlight.cli import main as cli
from adlight.cli.words import require, value_of
from adlight.prediction.stream import ImageStream
from adlight.runs.folder import RunFolder
from adlight.runs.restore import find_weights, frozen_config
from adlight.runs.subfolders import GroupFolder
from adlight.runs.weights import load_weights
from adlight.train import build
from adlight.types import Record, UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.datamodule import AnomalyDataModule
    from adlight.learning.grouping import Region

SIDE, COLUMNS, SHOWN = 128, 8, 48  # side of a picture in pixels, pictures in a row, most pictures in a sheet


def group(config: DictConfig) -> Path:
    """Find anomalous regions, group them, and write a table and a sheet of pictures per group. -> the folder.

    Raises:
        UserError: there are no images or too few anomalous ones, or scikit-learn is missing.
    """
    from adlight.detection.categories import CategoryRule
    from adlight.learning.grouping import find_regions_of, group_features, measure_agreement
    from adlight.runs.programs import check_values

    check_values(config)
    run, folder = RunFolder(config.run), GroupFolder(HydraConfig.get().runtime.output_dir)
    saved = frozen_config(run, config.device, config.root)
    data, module, _ = build(saved)
    path, changes = find_weights(run, str(config.ckpt or saved.ckpt))
    load_weights(module, path, changes=changes)
    if config.images is None:
        data.prepare_data()
        records, rule = data.source.test(), None
    else:
        records = [Record(str(path), "", path.parent.name) for path in ImageStream(str(config.images))]
        rule = CategoryRule(config.category, module.calibration, module.classifier)
        rule.check(Path(record.path) for record in records)
    regions = find_regions_of(module, records, data, str(saved.trainer.precision), rule)
    if not regions:
        raise UserError("no image is anomalous, so there is nothing to group: choose other images")
    grouping = group_features([region.features for region in regions], config.method, config.groups, config.least)
    labels = [int(label) for label in grouping.group]
    defects = [region.record.defect for region in regions]
    summary: dict[str, Any] = {"method": config.method, "groups": max(labels) + 1, "regions": len(regions)}
    summary |= {"images": len({region.record.path for region in regions}), "silhouette": grouping.silhouette}
    if len(set(defects)) > 1:
        summary |= measure_agreement(grouping.group, defects)
    members = {label: (grouping.group == label).nonzero()[0].tolist() for label in sorted(set(labels))}
    sheets = {label: draw_sheet([regions[i] for i in indices], data) for label, indices in members.items()}
    rows = [
        (*region.record[:3], ",".join(map(str, region.box)), label)
        for region, label in zip(regions, labels, strict=True)
    ]
    folder.write(rows, sheets, summary)
    print_summary(folder, members, defects, summary)
    return folder.path


def draw_sheet(regions: list["Region"], data: "AnomalyDataModule") -> Image.Image:
    """Draw the regions with the highest peaks, each in a square, in rows of `COLUMNS`."""
    from adlight.learning.grouping import crop

    shown = sorted(regions, key=lambda region: -region.peak)[:SHOWN]
    columns = min(COLUMNS, len(shown))
    sheet = Image.new("RGB", (columns * SIDE, math.ceil(len(shown) / columns) * SIDE), "white")
    for i, region in enumerate(shown):
        picture = Image.fromarray(crop(region, data))
        scale = (SIDE - 4) / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        corner = (i % columns) * SIDE + (SIDE - picture.width) // 2, i // columns * SIDE + (SIDE - picture.height) // 2
        sheet.paste(picture, corner)
    return sheet


def print_summary(
    folder: GroupFolder, members: dict[int, list[int]], defects: list[str], summary: dict[str, Any]
) -> None:
    """Print each group's size and most frequent defects, and the agreement between groups and defects."""
    table = Table("group", "regions", "most frequent defects", "pictures")
    for label, indices in members.items():
        counts = Counter(defects[i] for i in indices).most_common(3)
        frequent = ", ".join(f"{name} {count}" for name, count in counts)
        title = "none" if label < 0 else str(label)
        table.add_row(title, str(len(indices)), Text(frequent), folder.sheet(label).name)
    Console().print(table)
    scores = {name.replace("_", " "): value for name, value in summary.items() if isinstance(value, float)}
    scores_text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    print(f"{summary['regions']} regions of {summary['images']} images: {scores_text}")
    print(f"groups: {folder}")


def arguments(argv: list[str]) -> list[str]:
    """Check `run` and `images` before a folder is created."""
    RunFolder(require(argv, "run", "group run=<run folder>")).config()
    if images := value_of(argv, "images"):
        ImageStream(images).require()
    return argv


def main() -> None:
    """Run as a program."""
    cli.run(lambda config: cli.run_logged(group, config), "group", arguments)


if __name__ == "__main__":
    main()

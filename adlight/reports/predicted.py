"""What `adlight.predict` prints: how many images are anomalous, by which thresholds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adlight.detection.pictures import colour_ceiling
from adlight.runs.predictions import Entry, PredictionFolder

SHOWN = 5  # unreadable files that are named


class Summary:
    """Counts predictions, one after the other.

    Args:
        entries: of a folder of predictions.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.counts = Counter[tuple[str, float, float, bool]]()  # source of the thresholds, both, anomalous
        self.failed, self.num_failed = list[str](), 0
        for one in entries:
            if "error" in one:
                self.failed += [one["error"]] * (self.num_failed < SHOWN)
                self.num_failed += 1
            else:
                self.counts[one["threshold_source"], one["threshold"], one["pixel_threshold"], one["anomalous"]] += 1

    def print(self, folder: PredictionFolder, pictures: Sequence[Path], rate: float) -> None:
        """Print the counts, and where the results and the folders of pictures lie; `rate`: images a second."""
        table = Table()
        for name in ("threshold of", "threshold", "images", "anomalous"):
            table.add_column(name, justify="left" if name == "threshold of" else "right")
        used = sorted({key[:3] for key in self.counts})
        for source, threshold, pixel_threshold in used:
            normal, anomalous = (self.counts[source, threshold, pixel_threshold, one] for one in (False, True))
            table.add_row(escape(source), f"{threshold:.6g}", str(normal + anomalous), str(anomalous))
        console = Console()
        console.print(table)
        lines = [f"skipped: {one}" for one in self.failed]
        if self.num_failed:
            lines.append(f"all {self.num_failed} that could not be read: {folder.unreadable}")
        lines.append(f"{self.counts.total()} images, {self.num_failed} skipped, {rate:.1f} images/s")
        lines.append(f"predictions: {folder.table}")
        if pictures:
            scale = ", ".join(dict.fromkeys(f"{colour_ceiling(one[2]):.3g}" for one in used))
            folders = ", ".join(map(str, pictures))
            lines.append(f"pictures: {folders} (colours from 0 to twice the pixel threshold: {scale})")
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True, markup=False)

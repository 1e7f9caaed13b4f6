"""The summary that `adlight.predict` prints: how many images are anomalous, and by which thresholds."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adlight.data.image_files import ADVICE
from adlight.detection.pictures import colour_ceiling
from adlight.runs.predictions import Entry, PredictionFolder

SHOWN = 5  # unreadable files that are named


class Summary:
    """Counts of normal, anomalous and unreadable images.

    Args:
        entries: the predictions; they are read once, one at a time.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        # keyed by source of the thresholds, image threshold, pixel threshold and verdict
        self.counts = Counter[tuple[str, float, float, bool]]()
        self.failed, self.num_failed = list[str](), 0
        for entry in entries:
            if "error" in entry:
                self.failed += [entry["error"]] * (self.num_failed < SHOWN)
                self.num_failed += 1
            else:
                key = entry["threshold_source"], entry["threshold"], entry["pixel_threshold"], entry["anomalous"]
                self.counts[key] += 1

    def print(self, folder: PredictionFolder, pictures: Sequence[str], rate: float) -> None:
        """Print the counts and where the results lie.

        Args:
            folder: of the predictions.
            pictures: kinds of the pictures that were written.
            rate: images per second.
        """
        table = Table()
        for name in ("threshold of", "threshold", "images", "anomalous"):
            table.add_column(name, justify="left" if name == "threshold of" else "right")
        thresholds = sorted({key[:3] for key in self.counts})
        for source, threshold, pixel_threshold in thresholds:
            normal, anomalous = (self.counts[source, threshold, pixel_threshold, verdict] for verdict in (False, True))
            table.add_row(escape(source), f"{threshold:.6g}", str(normal + anomalous), str(anomalous))
        console = Console()
        console.print(table)
        lines = [f"skipped: {error.removesuffix(ADVICE)}" for error in self.failed]
        if self.num_failed:
            lines.append(f"all {self.num_failed} unreadable images: {folder.unreadable}")
        lines.append(f"{self.counts.total()} images, {self.num_failed} skipped, {rate:.1f} images/s")
        lines.append(f"predictions: {folder.table}")
        if pictures:
            scale = ", ".join(dict.fromkeys(f"{colour_ceiling(pixel):.3g}" for _, _, pixel in thresholds))
            colours = f"colours from 0 to twice the pixel threshold: {scale}"
            lines.append(f"pictures: {', '.join(pictures)} in {folder.path} ({colours})")
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True, markup=False)

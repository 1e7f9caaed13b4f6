"""Trainings and finished runs as Python objects: `adlight.train("model=retrieval", ...)` and `adlight.load(folder)`."""

import base64
import io
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from adlight.cli.in_process import run_training
from adlight.runs.folder import RunFolder
from adlight.types import UserError

if TYPE_CHECKING:  # they take seconds: not for --help
    from pandas import DataFrame

    from adlight.detector import Detector

PANELS, PANEL_WIDTH = 3, 800  # pictures in a notebook, and their width in pixels


class Run:
    """A run: its numbers, its predictions for the test images, its detector. Notebooks show a table and pictures.

    Args:
        path: the run's folder.

    Attributes:
        path: the run's folder.
        config: the composed config, as in `run.config.dataset.batch_size`.

    Raises:
        UserError: the folder holds no run.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | Path):
            raise UserError(f"a run is named by its folder, got {path!r}")
        self._folder = RunFolder(path)
        self.path = self._folder.path
        self.config: DictConfig = self._folder.read_training()

    @cached_property
    def results(self) -> dict[str, Any]:
        """All results, as in `metrics.json`; raises a UserError if the run is not finished."""
        if (found := self._folder.read_results()) is None:
            raise UserError(f"{self.path} is not finished: continue with adlight.train(resume={str(self.path)!r})")
        return found

    @property
    def metrics(self) -> dict[str, float]:
        """The test's metrics by name (`auroc`, `pixel_auroc`, `aupro`, ...), averaged over categories.

        `val/auroc` comes from held-out training images: choose models by it, not by the test's metrics.
        """
        from adlight.reports.rows import result_rows
        from adlight.runs.tables import OBJECTIVE

        row = next(row for row in result_rows(self.results) if row["headline"])
        found = {name: value for name, value in row.items() if isinstance(value, float)}
        objective = self.results.get("validation", {}).get(OBJECTIVE)
        return found if objective is None else {OBJECTIVE: objective, **found}

    @cached_property
    def predictions(self) -> "DataFrame":
        """A row per test image: path, category, defect, label, score, threshold, decision, area, boxes."""
        table = self._folder.predictions()
        if table is None:
            _ = self.results  # raises if the run is not finished
            raise UserError(f"{self.path} has no predictions: test it again with adlight evaluate")
        return table

    def detector(self, **settings: Any) -> "Detector":
        """Load the detector that the run tested; `settings` are arguments of `Detector.load`, such as `device`."""
        from adlight.detector import Detector

        return Detector.load(self.path, **settings)

    def __repr__(self) -> str:
        if not self._folder.is_finished:
            return f"<Run {self.path}: not finished>"
        shown = (f"{name} {self.metrics[name]:.3f}" for name in ("val/auroc", "auroc", "aupro") if name in self.metrics)
        return f"<Run {self.path}: {', '.join(shown)}>"

    def _repr_html_(self) -> str:
        from html import escape

        from adlight.reports.tables import by_result
        from adlight.reports.terminal import to_text

        parts = [f"<p>{escape(repr(self))}</p>"]
        if self._folder.is_finished:
            parts.append(to_text(by_result(self.results)).to_html(index=False, border=0))
        for path in self._folder.panel_paths()[:PANELS]:
            parts.append(f'<p>{escape(path.stem)}<br><img src="{_embed(path)}" width="{PANEL_WIDTH}"></p>')
        return "\n".join(parts)


def load(path: str | Path) -> Run:
    """Open the folder of a run; raise a UserError if it holds no run."""
    return Run(path)


class TrainProgram(ModuleType):
    """The module `adlight.train`, which can be called: `adlight.train(...)` does what `adlight train ...` does.

    A function of the same name would be replaced by the module as soon as anything imports it.
    """

    def __call__(
        self,
        *overrides: str,
        run_dir: str | Path | None = None,
        config_dir: str | Path | None = None,
        **settings: Any,
    ) -> Run:
        """Train and test a detector as `adlight train` does, with the same folder, checks, locks and numbers.

        Args:
            overrides: as on the command line: `"model=retrieval"`, `"trainer.max_epochs=20"`.
            run_dir: folder to write; None for a new one in runs/.
            config_dir: folder with your own configs, such as `model/<name>.yaml`.
            settings: overrides by name, whose values need no quotes. `root="my parts"` is short for `dataset.root`;
                settings of the trainer and the model can be shortened in the same way. Write any other as
                `**{"model.optimizer.lr": 1e-3}`. `resume=<run folder>` continues a run.

        Raises:
            UserError: a setting, file or folder is wrong; the message is the line that the command would print.
            KeyboardInterrupt: the training was stopped; the text says how to continue.
        """
        if wrong := [override for override in overrides if not isinstance(override, str)]:
            raise UserError(f'overrides are texts such as "model=retrieval", got {wrong[0]!r}')
        words = [] if config_dir is None else ["--config-dir", str(config_dir)]
        if run_dir is not None:
            settings["hydra.run.dir"] = str(run_dir)
        return Run(run_training(self.run_or_job, [*words, *overrides], settings).path)


def _embed(path: Path) -> str:
    """Read a picture for a page, scaled down to `PANEL_WIDTH` at twice the density."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as picture:
        picture.thumbnail((2 * PANEL_WIDTH, 4 * PANEL_WIDTH))
        picture.convert("RGB").save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

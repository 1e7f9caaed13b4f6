"""The interface of detectors, and scoring with a detector outside a trainer."""

from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

from adlight.detection.classifier import CategoryClassifier
from adlight.detection.inference import autocast_dtype, inference, make_batch
from adlight.metrics.thresholds import Calibration
from adlight.types import Batch, ScoredImages, Scorer, Scores, reconstruction_of


class AnomalyDetector(nn.Module):
    """Interface of all detectors: a subclass implements `score`; an `AnomalyModule` trains it.

    Attributes:
        calibration: calibration methods and the thresholds found; saved in checkpoints.
        classifier: classifies images by training category; saved in checkpoints.
    """

    backbone: Any = None  # a frozen network; checkpoints store its fingerprint instead of its weights
    takes_padding = True  # supports `Batch["size"]` (padded images) and `Batch["content"]` (region of interest)

    def __init__(self) -> None:
        super().__init__()
        self.calibration = Calibration()
        self.classifier = CategoryClassifier()

    @property
    def export_blocker(self) -> str | None:
        """The reason why the score cannot be exported as a graph, and what can be exported; None if it can be."""
        return None

    def score(self, batch: Batch) -> Scores:
        """Score a batch; an image's scores depend only on the image and the weights."""
        raise NotImplementedError

    def make_scorer(self, precision: str, device: str | torch.device) -> Scorer:
        """Make a `Scorer` that runs this detector in a trainer's precision; an unknown precision is a UserError."""
        return ModuleScorer(self, precision, device)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the calibration results for the checkpoint; buffers would need the number of categories in advance."""
        fingerprint = {} if self.backbone is None else {"backbone": self.backbone.fingerprint}
        return {**self.calibration.state_dict(), "classifier": self.classifier.state_dict(), **fingerprint}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the calibration results from a checkpoint; raise a UserError if it was made with another backbone."""
        if self.backbone is not None:
            self.backbone.check_fingerprint(state.get("backbone"))
        self.calibration.load_state_dict(state)
        self.classifier.load_state_dict(state["classifier"])


class ModuleScorer:
    """Scores arrays of pixels with a detector in a trainer's precision; threads may share it and take turns."""

    def __init__(self, module: AnomalyDetector, precision: str, device: str | torch.device) -> None:
        self.device, self.autocast = torch.device(device), autocast_dtype(precision)
        self.module = module.eval().requires_grad_(False).to(self.device)
        self.lock = Lock()  # a backbone holds its layers' outputs during a call

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}  # a copy has its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=Lock())

    def __call__(
        self,
        pixels: np.ndarray,
        size: np.ndarray | None,
        reconstruct: bool = False,
        content: np.ndarray | None = None,
    ) -> ScoredImages:
        """Score images (B, C, H, W) uint8, see `types.Scorer`."""
        sizes = None if size is None else torch.from_numpy(size)
        inside = None if content is None else torch.from_numpy(content)
        with self.lock, inference(self.device, self.autocast):
            scores = self.module.score(make_batch(torch.from_numpy(pixels).to(self.device), sizes, inside))
            shown = reconstruction_of(scores).float().cpu().numpy() if reconstruct else None
            return ScoredImages(scores["image"].double().cpu().numpy(), scores["pixel"].float().cpu().numpy(), shown)

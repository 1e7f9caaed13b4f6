"""What judges images: networks, a score, thresholds; no training, so that a finished run is used without a trainer."""

from typing import Any

import torch
from torch import nn

from adlight.detection.categories import CategoryClassifier
from adlight.metrics.thresholds import Calibration
from adlight.types import Batch, Scorer, Scores


class AnomalyDetector(nn.Module):
    """Interface of the detectors: a subclass writes `score`, and an `AnomalyModule` trains it.

    Attributes:
        calibration: methods of calibration, and the thresholds found; a checkpoint carries them.
        classifier: tells the categories of its training apart; likewise.
    """

    takes_padding = True  # `Batch["size"]` of images that keep their shape, `Batch["content"]` of regions of interest

    def __init__(self) -> None:
        super().__init__()
        self.calibration = Calibration()
        self.classifier = CategoryClassifier()

    @property
    def export_blocker(self) -> str | None:
        """Why the score cannot be exported as a graph, and what can; None: nothing is known to be in the way."""
        return None

    def score(self, batch: Batch) -> Scores:
        """Score a batch; an image's scores depend on nothing but the image and the weights."""
        raise NotImplementedError

    def make_scorer(self, precision: str, device: str | torch.device) -> Scorer:
        """Make what scores pixels by this detector, in a trainer's precision.

        Raises:
            UserError: an unknown precision.
        """
        from adlight.detection.inference import ModuleScorer

        return ModuleScorer(self, precision, device)

    def get_extra_state(self) -> dict[str, Any]:
        """Give the checkpoint what calibration found: a buffer would have to know the number of categories first."""
        return {**self.calibration.state_dict(), "classifier": self.classifier.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take from a checkpoint what calibration found."""
        self.calibration.load_state_dict(state)
        self.classifier.load_state_dict(state["classifier"])

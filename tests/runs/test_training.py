"""What a run finds out about its images before it begins."""

import pytest
from makers import fake_mvtec

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.mvtec import MVTecAD
from adlight.metrics.thresholds import Calibration
from adlight.runs.folder import RunFolder
from adlight.runs.training import check_data
from adlight.types import UserError


class OneIsNew(MVTecAD):
    """Trains on the first of its categories alone."""

    def train(self):
        return [record for record in super().train() if record.category == self.categories()[0]]


def test_a_category_of_which_no_image_is_trained_on(tmp_path):
    fake_mvtec(tmp_path / "data")
    data, run = AnomalyDataModule(OneIsNew, image_size=32, root=str(tmp_path / "data")), RunFolder(tmp_path)
    for settings in ({}, {"image": 0.5}, {"pixel": 0.5}):
        with pytest.raises(UserError, match=r"^screw: .*calibration\.per=all"):
            check_data(data, Calibration(**settings), run)
    for settings in ({"per": "all"}, {"image": 0.5, "pixel": 0.5}):
        check_data(data, Calibration(**settings), run)

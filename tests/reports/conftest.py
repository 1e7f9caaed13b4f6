"""Made-up runs have few images, which are all there are in the sets that published numbers are about."""

import pytest

from adlight.reports import protocol

FEW = {"mvtec": {"bottle": 20, "screw": 20}, "mnist": {None: 20}}


@pytest.fixture(scope="module")
def published_sets_are_small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "TEST_IMAGES", FEW)
        yield

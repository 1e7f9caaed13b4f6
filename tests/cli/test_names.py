"""Names of folders and files that are no UTF-8, through every command."""

import os

import pandas as pd
import pytest
from makers import write_image


@pytest.fixture(scope="module")
def name(adlight):
    """Some images in a folder whose name is Latin-1."""
    name = os.fsdecode(b"f\xfcr uns")
    try:
        for i in range(12):
            write_image(adlight.folder / name / "good" / os.fsdecode(b"\xe9%d.png" % i), i)
        for i in range(3):
            write_image(adlight.folder / name / "bad" / os.fsdecode(b"\xe8%d.png" % i), 20 + i)
    except OSError as error:
        pytest.skip(f"this file system takes no such name: {error}")
    return name


def test_every_command_takes_it(adlight, name):
    data = ["dataset=folder", f"dataset.root='{name}'", "dataset.normal_dir=good", "dataset.abnormal_dir=bad"]
    run = adlight.train("model=knn", *data, "dataset.image_size=32", "trainer=cpu", "hydra.run.dir=runs/bytes")
    again = adlight.evaluate(run)
    outcome = adlight("predict", f"run={run}", f"images={name}/bad", "save=panels", "hydra.run.dir=p")
    assert outcome.code == 0, outcome.err
    tables = [pd.read_csv(folder / "predictions.csv", encoding_errors="surrogateescape") for folder in (run, again)]
    found = pd.read_csv(adlight.folder / "p" / "predictions.csv", encoding_errors="surrogateescape")
    for path in [*tables[0]["path"], *found["path"]]:
        assert os.path.isfile(adlight.folder / path)
    assert tables[0].equals(tables[1]) and set(tables[0]["category"]) == {name}
    assert adlight("doctor", *data).code == 0
    outcome = adlight("report", f"runs={run}", "out=page")
    assert outcome.code == 0 and (adlight.folder / "page" / "index.html").is_file(), outcome.err

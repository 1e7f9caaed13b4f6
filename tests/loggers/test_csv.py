import pytest
from readers import table

from adlight.loggers.csv import CSVLogger
from adlight.types import UserError


def logged(path, *rows):
    logger = CSVLogger(str(path))
    for row in rows:
        logger.log_metrics(row, step=int(10 * row.get("epoch", 0)))
    logger.save()
    return table(path)


def test_a_row_per_epoch(tmp_path):
    rows = logged(
        tmp_path / "deep" / "metrics.csv",
        {"epoch": 0, "val/auroc": 0.5},
        {"epoch": 0, "train/loss": 2.0},
        {"epoch": 1, "val/auroc": 0.75},
        {"epoch": 1, "test/auroc": 0.25},
        {"learning_rate": 0.1},
    )
    assert rows == [
        {"epoch": "0", "step": "0", "val/auroc": "0.5", "train/loss": "2.0"},
        {"epoch": "1", "step": "10", "val/auroc": "0.75", "train/loss": ""},
    ]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["metrics.csv"]


def test_old_rows_stay_and_redone_epochs_are_replaced(tmp_path):
    path = tmp_path / "metrics.csv"
    logged(path, *({"epoch": e, "loss": float(e)} for e in range(3)))
    rows = logged(path, {"epoch": 2, "loss": 20.0}, {"epoch": 3, "loss": 30.0, "new": 1.0})
    assert [row["loss"] for row in rows] == ["0.0", "1.0", "20.0", "30.0"]
    assert [row["new"] for row in rows] == ["", "", "", "1.0"]
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("content", [b"epoch,loss\nx,1\n", b"loss\n1\n", b"\xff\xfe\x99"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / "metrics.csv")):
        CSVLogger(tmp_path / "metrics.csv")

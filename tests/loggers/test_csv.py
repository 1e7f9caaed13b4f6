import csv

import pytest
from pytorch_lightning.utilities import rank_zero_only

from adlight.loggers.wandb import CurveFile, WandbRun, chosen_mode, has_wandb_key


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def logged(path, *rows):
    logger = CurveFile(str(path))
    for row in rows:
        logger.log_metrics(row, step=int(10 * row.get("epoch", 0)))
    logger.save()
    return table(path)


def test_a_row_an_epoch(tmp_path):
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


@pytest.mark.parametrize("how", ["environment", "netrc", None])
def test_wandb_key(tmp_path, monkeypatch, how):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if how == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "not a real one")
    if how == "netrc":
        (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password none\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert has_wandb_key() == (how is not None)


def test_wandb_key_for_a_server_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "keys"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    (tmp_path / "keys").write_text("machine api.wandb.ai login user password none\n")
    assert not has_wandb_key()
    (tmp_path / "keys").write_text("machine wandb.example.org login user password none\n")
    assert has_wandb_key()


@pytest.mark.parametrize(
    ("asked", "environment", "key", "found"),
    [
        (None, None, None, "offline"),
        (None, None, "a key", "online"),
        (None, "offline", "a key", "offline"),
        (None, "dryrun", "a key", "offline"),
        ("disabled", "offline", None, "disabled"),
        ("online", "offline", "a key", "online"),
        ("offline", None, "a key", "offline"),
    ],
)
def test_the_mode_of_wandb(tmp_path, monkeypatch, asked, environment, key, found):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("WANDB_MODE", environment), ("WANDB_API_KEY", key)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert chosen_mode(asked) == found


def test_only_the_first_process_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = WandbRun(str(tmp_path), mode="offline")
    logger.experiment.log({"anything": 1})
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())

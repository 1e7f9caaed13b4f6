import pytest
from pytorch_lightning.utilities import rank_zero_only

from adlight.loggers.wandb import WandbLogger, choose_mode, has_wandb_key


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
    assert choose_mode(asked) == found


def test_only_the_first_process_logs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = WandbLogger(str(tmp_path), mode="offline")
    logger.experiment.log({"anything": 1})
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())

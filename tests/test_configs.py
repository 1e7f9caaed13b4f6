"""Every config composes, and every model trains on every data set at the sizes that belong to the pair."""

import inspect
import math
import os
import warnings

import pytest
import torch
import yaml
from hydra.utils import get_object, instantiate
from makers import composed, fake_cifar10, fake_mnist, fake_mvtec, write_image

from adlight.runs.config import CONF
from adlight.runs.folder import RunFolder
from adlight.runs.training import plan_stages
from adlight.train import build, fit


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.name.startswith("_"))


MODELS = [name for name in names("model") if name.startswith("mae")]  # others: tests/<their folder>
DATASETS = names("dataset")
PAIRS = [(model, dataset) for model in MODELS for dataset in DATASETS]
ARTICLE_DEPTHS = [(2, 2), (2, 4), (4, 2), (6, 6), (8, 12), (12, 8)]
SIZES = {"mnist": 28, "cifar10": 32}  # sides that come from the data set alone


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A small set for each of the data sets, and the settings that find it."""
    root = tmp_path_factory.mktemp("sets")
    fake_mnist(root)
    fake_cifar10(root)
    fake_mvtec(root / "mvtec")
    for split in ("train", "test"):
        for i, name in enumerate(("apple", "pear")):
            for k in range(4):
                write_image(root / "labelled" / split / name / f"{k}.png", 10 * i + k)
    return {
        "mnist": [f"dataset.root={root}"],
        "cifar10": [f"dataset.root={root}"],
        "mvtec": [f"dataset.root={root}/mvtec"],
        "folder": [
            f"dataset.root={root}/mvtec/bottle",
            "dataset.normal_dir=train/good",
            "dataset.abnormal_dir=test/hole",
            "dataset.mask_dir=ground_truth/hole",
        ],
        "labelled_folder": [f"dataset.root={root}/labelled", "dataset.normal=apple"],
        "synthetic": [
            f"dataset.root={root}/synthetic",
            "dataset.source.size=48",
            "dataset.source.train=4",
            "dataset.source.test=3",
        ],
    }


@pytest.mark.parametrize("group", ["model", "dataset", "trainer", "logger", "callbacks", "experiment"])
def test_every_choice_composes(group):
    for name in names(group):
        config = composed(f"{group}={name}")
        assert set(config) >= {"model", "dataset", "trainer", "callbacks", "seed", "calibration", "ckpt"}, name
    assert names(group), group


def nodes(value):
    """Those that name a constructor of ours."""
    if isinstance(value, dict):
        if str(value.get("_target_", "")).startswith("adlight."):
            yield value
        value = list(value.values())
    for one in value if isinstance(value, list) else []:
        yield from nodes(one)


def test_a_node_repeats_the_constructor_s_defaults():
    """Hydra takes keys that a node does not list only with a `+`, so nodes list all that is a setting."""
    count, others = 0, set()
    for node in [node for path in CONF.rglob("*.yaml") for node in nodes(yaml.safe_load(path.read_text()))]:
        target = get_object(node["_target_"])
        for name, parameter in inspect.signature(target).parameters.items():
            value, default = node.get(name, parameter.empty), parameter.default
            if parameter.empty not in (value, default) and not isinstance(value, dict) and "${" not in str(value):
                count += 1
                others |= {f"{target.__name__}.{name}"} if value != default else set()
    assert count > 80
    callbacks = {"FolderCallback.trains", "FolderCallback.writes", "WandbLogger.tags"}
    # runs of earlier versions, whose configs do not contain the setting, keep the constructor's default
    assert others == {"Backbone.min_size", "InversionScorer.latent", *callbacks}


@pytest.mark.parametrize(("encoder", "decoder"), ARTICLE_DEPTHS)
def test_the_article_s_depths(encoder, decoder):
    config = composed("model=mae", f"model/depth=e{encoder}d{decoder}").model.network
    assert (config.encoder_depth, config.decoder_depth) == (encoder, decoder)
    assert (config.encoder_width, config.decoder_width) == (768, 512)  # nothing else changes


def test_there_are_no_other_depths():
    assert names("model/depth") == sorted(f"e{e}d{d}" for e, d in ARTICLE_DEPTHS)


def test_the_article_s_model():
    config = composed("model=mae", "dataset=mvtec", "dataset.root=x")
    model = config.model
    assert (model.network.encoder_depth, model.network.decoder_depth, model.tokenizer.patch_size) == (2, 4, 16)
    assert (model.tokenizer.image_size, config.dataset.batch_size, model.mask_ratio) == (224, 16, 0.75)
    assert (model.objective.ssim, model.objective.l1, model.objective.lpips) == (1, 1, 1)
    assert (model.optimizer.lr, list(model.optimizer.betas)) == (1e-3, [0.9, 0.95])
    assert (model.optimizer.weight_decay, model.warmup_epochs) == (0.05, 10)
    assert (model.scorer.score, model.scorer.reduce, model.masks) == ("mse", "mean", "complementary")
    assert config.trainer.max_epochs == 1000


def test_the_thesis_s_gan():
    """Its own setting is an experiment; the default of `model=gan` is smaller and learns faster."""
    thesis, default = composed("experiment=gan_thesis"), composed("model=gan", "dataset=mnist")
    gan = thesis.model.gan
    assert (gan.generator.ngf, gan.critic.ndf, thesis.model.encoder.ndf, gan.n_critic, gan.ema) == (64, 64, 64, 5, 0)
    assert gan.critic_optimizer.lr == gan.generator_optimizer.lr == 1e-4
    assert (gan.generator_steps, thesis.trainer.max_epochs, thesis.dataset.batch_size) == (None, 32, 50)
    gan = default.model.gan
    assert (gan.generator.ngf, gan.critic_optimizer.lr, gan.n_critic, gan.ema) == (32, 1e-3, 5, 0.99)
    assert gan.generator_steps is None  # trainer.max_epochs decides


def test_the_article_s_experiment():
    config = composed("experiment=mae_mvtec")
    assert config.model._target_.endswith("MAEModule") and config.model.network.encoder_width == 768
    assert config.dataset.source._target_.endswith("MVTecAD") and config.dataset.category == "all"
    assert (config.trainer.devices, config.trainer.accelerator, config.trainer.strategy) == (4, "gpu", "ddp")
    assert (config.trainer.max_epochs, config.dataset.image_size, config.dataset.batch_size) == (1000, 224, 16)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_small_model_is_small_and_fetches_nothing(dataset):
    config = composed("model=mae_small", f"dataset={dataset}")
    assert config.model.objective.lpips == 0
    tokenizer = instantiate(config.model.tokenizer)
    network = instantiate(config.model.network)(tokenizer.grid, tokenizer.dim)
    assert sum(parameter.numel() for parameter in network.parameters()) <= 3e6


def test_sizes_of_the_pairs():
    for model, dataset in PAIRS:
        config = composed(f"model={model}", f"dataset={dataset}")
        side = SIZES.get(dataset, 224 if model == "mae" and dataset != "synthetic" else 128)
        assert config.dataset.image_size == side, (model, dataset)
        assert config.model.tokenizer.image_size == side
        assert config.model.tokenizer.patch_size == (4 if dataset in SIZES else 16)
        assert config.dataset.channels == config.model.tokenizer.channels == (1 if dataset == "mnist" else 3)
        plain = dataset in SIZES or model == "mae_small"  # a flipped digit is another digit
        assert (config.dataset.augmentation is None) == plain


@pytest.fixture
def trained(roots, tmp_path, monkeypatch):
    """Build, train and test what some words compose. -> config, data, module, trainer, the parameters before."""
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: os.path.isfile(path))  # a fake has its own MD5
    monkeypatch.setattr("pytorch_lightning.seed_everything", lambda *_, **__: torch.manual_seed(0))

    def train(dataset, *words):
        config = composed(
            *(f"dataset={dataset}", "trainer=debug", "logger=none", "~callbacks", *roots[dataset], *words),
            *("trainer.limit_train_batches=1", "trainer.limit_test_batches=1", "trainer.enable_progress_bar=false"),
        )
        config.run_dir = str(tmp_path)
        data, module, trainer = build(config)
        before = {name: value.clone() for name, value in module.named_parameters()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stages = plan_stages(config, RunFolder(tmp_path), data, module, trainer, resumed=False)
            trainer, _ = fit(config, stages, data, trainer)
            trainer.test(module, data, verbose=False)
        side = config.dataset.image_size
        assert data.datasets["train"].images.shape[1:] == (config.dataset.channels, side, side)
        assert math.isfinite(module.calibration.pooled.image) and module.results.mean
        return config, module, trainer, before

    return train


@pytest.mark.parametrize(("model", "dataset"), PAIRS)
def test_every_pair_trains_a_batch(model, dataset, trained):
    shrunken = [f"model.network.{part}_{key}" for part in ("encoder", "decoder") for key in ("width=16", "heads=2")]
    depths = ("model.network.encoder_depth=1", "model.network.decoder_depth=1")
    config, module, trainer, before = trained(dataset, f"model={model}", *shrunken, *depths, "model.objective.lpips=0")
    assert module.network.num_patches == (config.dataset.image_size // module.tokenizer.patch_size) ** 2
    assert trainer.global_step == 1
    assert any(not torch.equal(value, before[name]) for name, value in module.named_parameters())


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_gan_trains_on_every_data_set(dataset, trained):
    widths = ("model.gan.generator.ngf=4", "model.gan.critic.ndf=4", "model.encoder.ndf=4", "dataset.batch_size=2")
    _, module, trainer, before = trained(
        dataset, "model=gan", *widths, "model.gan.n_critic=1", "model.gan.generator_steps=1", "model.encoder_epochs=1"
    )
    assert trainer.global_step == 1 and int(module.gan.generator_steps) == 1
    for network in ("gan.generator", "gan.critic", "encoder"):
        mine = {name: value for name, value in module.named_parameters() if name.startswith(network)}
        assert any(not torch.equal(value, before[name]) for name, value in mine.items()), network

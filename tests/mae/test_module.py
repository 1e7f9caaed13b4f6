import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from makers import fake_mvtec
from pytorch_lightning import Trainer
from torch import nn

from adlight.data.augmentation import Augmentation
from adlight.data.datamodule import AnomalyDataModule
from adlight.data.mvtec import MVTecAD
from adlight.detection.optimization import WarmupCosine, step_rng, warmup_cosine
from adlight.detection.regions import segment
from adlight.mae.masking import draw_masks
from adlight.mae.module import MAEModule
from adlight.mae.network import MaskedAutoencoder
from adlight.mae.objective import ReconstructionLoss
from adlight.mae.scorer import MultiMaskScorer, reconstruct
from adlight.mae.tokens import PixelTokenizer
from adlight.mae.whitened import WhitenedResidual
from adlight.metrics.image import auroc
from adlight.runs.checkpoints import BestAndLast
from adlight.runs.weights import load_weights
from adlight.types import UserError

PIXELS = PixelTokenizer(32, 3, 8)
EPOCHS, BATCHES = 2, 3  # 16 images in 2 categories, 4 of them held out; batches of 4


def make(seed=0, lr=1e-3, weight_decay=0.05, kind=MAEModule, **settings):
    torch.manual_seed(seed)
    sizes = dict(encoder_depth=1, encoder_width=16, encoder_heads=2, decoder_depth=1, decoder_width=16, decoder_heads=2)
    network = partial(MaskedAutoencoder, **sizes)
    optimizer = partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    objective = ReconstructionLoss(lpips=0)
    defaults = dict(objective=objective, scorer=MultiMaskScorer(smoothing=1.0), optimizer=optimizer, warmup_epochs=1)
    return kind(PIXELS, network, **(defaults | settings))


def fit(root, folder, module=None, ckpt=None, callbacks=(), epochs=EPOCHS, stopped=False, **settings):
    """Train for two epochs as `adlight.train` does; returns module, data and trainer."""
    pl.seed_everything(0, verbose=False)
    module = make() if module is None else module
    sizes = dict(image_size=32, batch_size=4, eval_batch_size=3, val_fraction=0.25, num_workers=0)
    data = AnomalyDataModule(MVTecAD, root=root, augmentation=Augmentation(), **sizes)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[BestAndLast(Path(folder) / "last.ckpt", Path(folder) / "best.ckpt"), *callbacks],
        **settings,
    )
    with pytest.raises(KeyError) if stopped else nullcontext():
        trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module, data, trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fake_mvtec(tmp_path_factory.mktemp("data"), train=8, test=2)


class Watch(pl.Callback):
    """Notes the learning rate before and the weights after each step, and the metrics of each epoch."""

    def __init__(self):
        self.rates, self.weights, self.metrics = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append({name: p.detach().clone() for name, p in module.network.named_parameters()})

    def on_train_epoch_end(self, trainer, module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class StopInSecondEpoch(pl.Callback):
    """A power cut in the middle of the second epoch."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise KeyError


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """One run that several tests look at: module, data, trainer, folder, watch."""
    folder, watch = tmp_path_factory.mktemp("run"), Watch()
    return *fit(root, folder, make(ema=0.8), callbacks=[watch]), folder, watch


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert one.pop("_extra_state") == other.pop("_extra_state")  # the thresholds
    return all(torch.equal(one[name], other[name]) for name in one)


# a run


def test_training_lowers_the_loss_and_moves_every_weight(trained):
    watch = trained[4]
    assert watch.metrics[1]["train/loss"] < watch.metrics[0]["train/loss"]
    assert len(watch.weights) == EPOCHS * BATCHES
    for name, start in make().network.named_parameters():
        assert not torch.equal(start, watch.weights[-1][name]), name


def test_logged_loss_is_the_sum_of_its_terms(trained):
    for metrics in trained[4].metrics:
        assert metrics["train/loss"] == pytest.approx(metrics["train/ssim"] + metrics["train/l1"], rel=1e-6)
        assert "train/lpips" not in metrics
    assert trained[0].describe() == ["loss: 1 ssim + 1 l1"]


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_checkpoints_hold_tensors_only(trained, name):
    module, _, _, folder, watch = trained
    content = torch.load(folder / name, weights_only=True)
    assert content["epoch"] in range(EPOCHS) and ("optimizer_states" in content) == (name == "last.ckpt")
    fresh = make(seed=1, ema=0.8)
    fresh.load_state_dict(content["state_dict"])
    for found in (fresh.calibration.pooled, *fresh.calibration.categories.values()):
        assert found.num_normals > 0 and found.image > 0 and found.pixel > 0
    if name == "last.ckpt":
        assert same(fresh, module)
    first, second = (metrics["val/auroc"] for metrics in watch.metrics)
    assert name == "last.ckpt" or content["epoch"] == int(second >= first)


def test_thresholds_come_from_the_validation_normals(trained):
    module, data, trainer, _, _ = trained
    with torch.no_grad():
        normal = data.datasets["val"].images.float() / 255
        scores = module.scorer(module.ema.network.eval(), PIXELS, normal)
        pasted = torch.stack(
            [b["image"] for b in map(data.val_dataloader().dataset.__getitems__, [[1], [3], [5], [7]])]
        )
        anomalous = module.scorer(module.ema.network, PIXELS, pasted[:, 0].float() / 255)["image"]
    image, pixel = scores["image"].double().numpy(), scores["pixel"].flatten().double().numpy()
    assert module.calibration.pooled.image == pytest.approx(image.max(), rel=1e-5)  # of four
    assert module.calibration.pooled.pixel == pytest.approx(np.quantile(pixel, 0.995, method="inverted_cdf"), rel=1e-4)
    labels = torch.tensor([0, 0, 1, 1])  # two of the four images are of either category
    wanted = [auroc(torch.cat([scores["image"][own], anomalous[own]]), labels) for own in (slice(2), slice(2, 4))]
    assert float(trainer.callback_metrics["val/auroc"]) == pytest.approx(np.mean(wanted))
    assert float(trainer.callback_metrics["val/score_normal"]) == pytest.approx(image.mean(), rel=1e-5)


def test_learning_rate_follows_the_schedule_by_the_step(trained):
    rates = [1e-3 * warmup_cosine(step, BATCHES, EPOCHS * BATCHES) for step in range(EPOCHS * BATCHES)]
    assert [pair[0] for pair in trained[4].rates] == pytest.approx(rates)


def test_ema_follows_by_its_decay(trained):
    module, _, _, _, watch = trained
    for name, average in module.ema.network.named_parameters():
        wanted = watch.weights[0][name]
        for weights in watch.weights[1:]:
            wanted = 0.8 * wanted + 0.2 * weights[name]
        torch.testing.assert_close(average, wanted)
    assert all(not p.requires_grad for p in module.ema.parameters())


def test_test_results_are_those_of_the_scorer(trained, tmp_path):
    module, data, _, _, _ = trained
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(module, data, verbose=False)
    assert [row.index for row in module.predictions] == list(range(12))
    assert [row.label for row in module.predictions] == [record.label for record in data.records("test")]
    images = data.datasets["test"].images.float() / 255
    for row in module.predictions:
        with torch.no_grad():
            scores = module.scorer(module.ema.network, PIXELS, images[row.index : row.index + 1])
        assert row.prediction.score == pytest.approx(float(scores["image"][0]), rel=1e-5)
        threshold = module.calibration.of(data.categories[row.category])
        content = torch.ones_like(scores["pixel"], dtype=torch.bool)
        _, (area,) = segment(scores["pixel"], [row.prediction.score], [threshold], content, module.calibration)
        assert row.prediction.area == pytest.approx(area, abs=2 / 1024)
        assert bool(row.prediction.boxes) == (row.prediction.area > 0) == row.prediction.anomalous


# determinism


def test_same_seed_same_weights(trained, root, tmp_path):
    torch.manual_seed(99)
    assert same(fit(root, tmp_path, make(ema=0.8))[0], trained[0])


def test_resumed_run_ends_with_the_same_weights(trained, root, tmp_path):
    fit(root, tmp_path, make(ema=0.8), callbacks=[StopInSecondEpoch()], stopped=True)
    checkpoint = tmp_path / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == BATCHES
    watch = Watch()
    resumed, _, trainer = fit(root, tmp_path / "resumed", make(seed=5, ema=0.8), checkpoint, [watch])
    assert same(resumed, trained[0])  # the average and the thresholds too
    assert trainer.current_epoch == EPOCHS and watch.metrics == trained[4].metrics[1:]


# what is fitted beside the network


def make_fitted(**settings):
    """One that starts from a linear model and whitens its residuals."""
    whitening = WhitenedResidual(3, cluster_size=8)
    scorer = MultiMaskScorer(score="mahalanobis", reduce="topk", smoothing=1.0, whitening=whitening)
    return make(scorer=scorer, linear_start=2, folds=2, training_residuals=6, **settings)


@pytest.fixture(scope="module")
def fitted(root, tmp_path_factory):
    folder, watch = tmp_path_factory.mktemp("fitted"), Watch()
    return *fit(root, folder, make_fitted(), callbacks=[watch]), folder, watch


def test_the_linear_start_knows_the_training_images_and_is_not_trained(fitted):
    module, data, *_ = fitted
    tokens = PIXELS.tokenize(data.datasets["train"].images.float() / 255)
    torch.testing.assert_close(module.linear.mean, tokens.mean(0))
    assert module.linear.components.any() and not [name for name, _ in module.linear.named_parameters()]


def test_an_untrained_network_adds_nothing_to_the_linear_start(fitted):
    module, fresh = fitted[0], make_fitted().eval()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = fresh.scorer.drawn_masks(16)[0]
    y = reconstruct(fresh.network, PIXELS, image, mask, linear=module.linear.eval())
    torch.testing.assert_close(y, PIXELS.detokenize(module.linear(PIXELS.tokenize(image), mask)))


def test_a_held_out_image_is_whitened_without_its_own_fold(fitted, monkeypatch):
    module, data, *_ = fitted
    image = data.datasets["val"].images.float() / 255
    batch = {"image": image}
    plain = module.score(batch)["image"]
    for k in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(module.scorer.error, "error", module.scorer.whitening.folds[k])
            alone = module.score(batch)["image"]
        assert torch.equal(module.score_by_fold(batch, torch.full((len(image),), k))["image"], alone)
        assert not torch.equal(alone, plain)
    assert module.fold_of is None  # after the validation: new images
    scores = sorted(module.score_by_fold(batch, torch.arange(len(image)) % 2)["image"].tolist())
    assert module.calibration.pooled.image == pytest.approx(scores[-1], rel=1e-5)


def test_what_was_fitted_is_in_the_checkpoint_and_resumed(fitted, root, tmp_path):
    fit(root, tmp_path, make_fitted(), callbacks=[StopInSecondEpoch()], stopped=True)
    watch = Watch()
    resumed = make_fitted(seed=5)
    load_weights(resumed, tmp_path / "last.ckpt")  # as every resumed run does
    fit(root, tmp_path / "resumed", resumed, tmp_path / "last.ckpt", [watch])
    assert resumed.scorer.whitening.scale.shape[0] > 0
    assert same(resumed, fitted[0]) and watch.metrics == fitted[4].metrics[1:]


# learning rates


class PerGroup(MAEModule):
    """Vectors learn at a tenth of the rate of matrices."""

    def configure_optimizers(self):
        groups = super().configure_optimizers()["optimizer"].param_groups
        groups = [
            {"params": group["params"], "lr": rate} for group, rate in zip(groups, (1e-3, 1e-4, 1e-5), strict=True)
        ]
        return self.schedule(torch.optim.AdamW(groups))

    def schedule(self, optimizer):
        schedule = WarmupCosine(optimizer, BATCHES, EPOCHS * BATCHES)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Chainable(PerGroup):
    """A schedule that multiplies the present rates, step by step."""

    def schedule(self, optimizer):
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


FACTORS = {
    PerGroup: [warmup_cosine(step, BATCHES, EPOCHS * BATCHES) for step in range(EPOCHS * BATCHES)],
    Chainable: [0.5**step for step in range(EPOCHS * BATCHES)],
}


@pytest.mark.parametrize("kind", FACTORS)
def test_each_group_follows_its_schedule_also_when_resumed(kind, root, tmp_path):
    watch = Watch()
    fit(root, tmp_path, make(kind=kind), callbacks=[watch, StopInSecondEpoch()], stopped=True)
    resumed = Watch()
    fit(root, tmp_path / "resumed", make(kind=kind), tmp_path / "last.ckpt", [resumed])
    rates = [watch.rates[:BATCHES], resumed.rates]
    wanted = [[1e-3 * factor, 1e-4 * factor, 1e-5 * factor] for factor in FACTORS[kind]]
    assert [pair for part in rates for pair in part] == [pytest.approx(pair) for pair in wanted]


def test_a_resumed_run_takes_the_rates_of_its_config(trained, root, tmp_path):
    """Of a finished run, with another rate and twice the epochs: the schedule is the new one from the first step on."""
    watch = Watch()
    fit(root, tmp_path, make(lr=2e-3, ema=0.8), trained[3] / "last.ckpt", [watch], epochs=2 * EPOCHS)
    steps = range(EPOCHS * BATCHES, 2 * EPOCHS * BATCHES)
    rates = [2e-3 * warmup_cosine(step, BATCHES, 2 * EPOCHS * BATCHES) for step in steps]
    assert watch.rates == [pytest.approx([rate] * 3) for rate in rates]


# bad luck


class NaNAfter:
    """A loss that is no number from its third call on."""

    def __init__(self):
        self.calls, self.weights = 0, {"l1": 1.0}

    def __call__(self, x, y, size=None, content=None):
        self.calls += 1
        loss = (x - y).abs().mean() * (float("nan") if self.calls > 2 else 1.0)
        return {"l1": loss, "loss": loss}


@pytest.mark.parametrize("settings", [{}, {"limit_val_batches": 0}], ids=["validated", "not validated"])
def test_diverged_run_says_so(root, tmp_path, settings):
    with pytest.raises(UserError, match=r"epoch [01]: the training has diverged"):
        fit(root, tmp_path, make(objective=NaNAfter()), **settings)
    assert not (tmp_path / "last.ckpt").exists()


def test_impossible_settings_fail_when_built():
    with pytest.raises(ValueError, match=r"mask_ratio 0\.7 gives n"):
        make(mask_ratio=0.7)
    with pytest.raises(ValueError, match=r"2\.\.16 \(the number of patches\)"):
        make(mask_ratio=0.95)
    with pytest.raises(ValueError, match=r"masks .*'both'"):
        make(masks="both")
    with pytest.raises(ValueError, match=r"ema.*1\.5"):
        make(ema=1.5)
    assert make(masks="single", mask_ratio=0.7).masks == "single"


# one step


class FakeTrainer:
    """What `training_step` and `configure_optimizers` ask of a trainer."""

    world_size, estimated_stepping_batches, max_epochs = 1, 100, 10
    global_step = global_rank = 0
    fit_loop = SimpleNamespace(total_batch_idx=0)


def attached(module, monkeypatch, **state):
    fake = FakeTrainer()
    for name, value in state.items():
        setattr(fake, name, value)
    monkeypatch.setattr(MAEModule, "trainer", fake)
    monkeypatch.setattr(MAEModule, "global_step", fake.global_step)
    monkeypatch.setattr(MAEModule, "global_rank", fake.global_rank)
    monkeypatch.setattr(module, "log", lambda *args, **settings: None)
    return module


def test_a_step_is_the_loss_of_the_reconstruction(monkeypatch):
    module = attached(make(seed=0), monkeypatch, global_step=7)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = module.training_step({"image": image}, 0)
    mask = draw_masks("complementary", 0.75, 16, step_rng(module, "masks", module.seed))
    y = reconstruct(module.network, PIXELS, image, mask)
    torch.testing.assert_close(loss, ReconstructionLoss(lpips=0)(image, y)["loss"])
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.network.parameters())


def test_masks_depend_on_seed_batch_and_process(monkeypatch):
    drawn = []
    for seed in (0, 1):
        for batch in (0, 1, 2):
            for rank in (0, 1):
                place = dict(fit_loop=SimpleNamespace(total_batch_idx=batch), global_rank=rank, world_size=2)
                module = attached(make(seed=0), monkeypatch, **place)
                module.seed = seed
                rngs = [step_rng(module, "masks", module.seed) for _ in range(2)]
                masks = [draw_masks("complementary", 0.75, 196, rng) for rng in rngs]
                assert torch.equal(*masks)
                drawn.append(masks[0])
    assert all(not torch.equal(drawn[i], drawn[j]) for i in range(len(drawn)) for j in range(i))


def test_weight_decay_is_for_matrices_only_and_averages_are_not_trained(monkeypatch):
    module = attached(make(ema=0.9), monkeypatch)
    found = module.configure_optimizers()
    blocks, others, free = found["optimizer"].param_groups
    assert [group["weight_decay"] for group in (blocks, others, free)] == [0.05, 0.05, 0.0]
    decayed = blocks["params"] + others["params"]
    assert found["lr_scheduler"]["interval"] == "step"
    names = {id(p): name for name, p in module.network.named_parameters()}
    kinds = {name: type(child) for name, child in module.network.named_modules()}
    for name in (names[id(p)] for p in decayed):
        owner, _, kind = name.rpartition(".")
        assert kind == "weight" and kinds[owner] is nn.Linear
    assert {id(p) for p in blocks["params"]} == {id(p) for p in module.network.matrices()}  # Muon's, where that is used
    rest = {names[id(p)] for p in free["params"]}
    assert "mask_token" in rest and "encoder_blocks.0.norm1.weight" in rest and "decoder_pred.bias" in rest
    assert len(decayed) + len(rest) == len(names)


def test_schedule_known_values():
    assert [warmup_cosine(step, 4, 12) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert warmup_cosine(8, 4, 12) == pytest.approx(0.5)
    assert warmup_cosine(6, 4, 12) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
    assert warmup_cosine(12, 4, 12) == pytest.approx(0) and warmup_cosine(99, 4, 12) == pytest.approx(0)
    assert warmup_cosine(0, 0, 10) == 1.0  # no warm-up
    assert warmup_cosine(5, 20, 10) == pytest.approx(6 / 21)  # a run shorter than its warm-up


def test_frozen_weights_of_lpips_belong_to_no_module(monkeypatch):
    monkeypatch.setattr("lpips.LPIPS", lambda **settings: nn.Linear(3, 3))
    module = make(objective=ReconstructionLoss(), scorer=MultiMaskScorer(score="lpips"))
    frozen = [*module.objective.perceptual.network.parameters(), *module.scorer.error.error.network.parameters()]
    assert len(frozen) == 4 and not {id(p) for p in frozen} & {id(p) for p in module.parameters()}
    assert all(name.startswith(("network.", "_extra_state")) for name in module.state_dict())
    module.train()
    assert not module.objective.perceptual.network.training


def test_scores_use_the_average_if_there_is_one():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, averaged = make().eval(), make(ema=0.9).eval()
    before = plain.score({"image": image})["image"]
    for module in (plain, averaged):
        for parameter in module.network.parameters():
            parameter.data.mul_(1.5)
    assert torch.equal(averaged.score({"image": image})["image"], before)
    assert not torch.equal(plain.score({"image": image})["image"], before)

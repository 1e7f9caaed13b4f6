import math
from functools import partial

import pytest
import torch
from gan.tiny import BATCHES, ENCODER_EPOCHS, GAN_EPOCHS, SIZE, Watch, fit, make, make_data, make_gan, make_trainer
from makers import fake_mvtec
from torch import nn

from adlight.detection.optimization import make_optimizer
from adlight.gan.encoder import GANDetector
from adlight.gan.networks import Encoder
from adlight.gan.scorer import TERMS, InversionScorer
from adlight.gan.terms import feature_distance
from adlight.metrics.image import auroc
from adlight.types import UserError

STEPS = ENCODER_EPOCHS * BATCHES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fake_mvtec(tmp_path_factory.mktemp("data"), ("bottle",), train=20, test=2, size=SIZE)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """Both stages, which several tests look at: module, data, trainer, watch of the encoder, folder."""
    folder, watch, data = tmp_path_factory.mktemp("run"), Watch(), make_data(root)
    module = make(make_gan(ema=0.8))
    fit(module.pretraining, data, folder)
    trainer = fit(module, data, folder, callbacks=[watch])
    return module, data, trainer, watch, folder


def images(data, split):
    return data.datasets[split].images.float() / 255


# training


def test_only_the_encoder_moves(trained):
    module, data, _, watch, _ = trained
    assert watch.moved("encoder") == list(range(STEPS)) and watch.moved("gan") == []
    assert watch.left == [] and not any(p.requires_grad for p in module.gan.parameters())
    assert not module.gan.generator.training and not module.gan.critic.training
    assert data.first_epoch == GAN_EPOCHS + ENCODER_EPOCHS
    assert module.metadata() == {"generator_steps": 2} and "2 generator steps" in module.describe()[0]


def test_the_order_of_the_images_goes_on_after_the_gan_s(trained, root):
    seen = trained[3].images
    data = make_data(root, seed=GAN_EPOCHS)  # the sampler adds seed and epoch
    data.setup("fit")
    train = images(data, "train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(GAN_EPOCHS))[:8]
    every = make_data(root)
    every.setup("fit")
    assert torch.equal(seen[0], images(every, "train")[order])


def test_scorer_is_fitted_to_training_images(root, tmp_path):
    data, module = make_data(root), make(scorer=InversionScorer(reach=0.5, feature="whitened"))
    trainer = fit(module, data, tmp_path, ENCODER_EPOCHS)
    expected = InversionScorer(reach=0.5, feature="whitened")
    expected.fit(module.networks, lambda: [images(data, "train")])
    assert expected.fitted["whitening"].shape == (4, 4) and float(trainer.callback_metrics["val/auroc"]) > 0
    again = make(scorer=InversionScorer(reach=0.5, feature="whitened"))
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.scorer.fitted, expected.fitted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again.scorer.fitted, module.scorer.fitted, atol=0, rtol=0)
    again.load_state_dict({**module.state_dict(), "_extra_state": make().get_extra_state()})
    assert not again.scorer.fitted  # a run that was trained without


def test_groups_of_parameters_keep_their_rates(root, tmp_path):
    def two_groups(parameters):
        first, *others = parameters
        return torch.optim.Adam([{"params": [first], "lr": 1e-3}, {"params": others}], lr=1e-2)

    watch = Watch()
    fit(make(optimizer=two_groups), make_data(root), tmp_path, ENCODER_EPOCHS, callbacks=[watch])
    shares = [(1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert watch.rates == [pytest.approx([1e-3 * share, 1e-2 * share]) for share in shares]


def test_a_bug_in_an_optimizer_keeps_its_traceback():
    def broken(parameters):
        return torch.optim.Adam(parameters, lr="1" + 1)

    with pytest.raises(TypeError):
        make_optimizer("encoder_optimizer", broken, nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"encoder_optimizer.*-1"):
        make_optimizer("encoder_optimizer", partial(torch.optim.Adam, lr=-1.0), nn.Linear(1, 1))


def test_weights_are_those_of_a_plain_loop(trained):
    module, _, _, watch, _ = trained
    encoder, generator, critic = Encoder(SIZE, 1, 6, 4), module.gan.ema.network, module.gan.critic
    start = {k.removeprefix("encoder."): v for k, v in watch.weights[0].items() if k.startswith("encoder")}
    encoder.load_state_dict(start)
    adam = torch.optim.Adam(encoder.parameters(), lr=1e-2, betas=(0.5, 0.9))
    for step, real in enumerate(watch.images):
        adam.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / STEPS)) / 2
        made = generator(encoder(real))  # the averaged generator
        loss = (real - made).square().mean() + feature_distance(critic, real, made).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    for expected, mine in zip(encoder.parameters(), module.encoder.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)
    assert [rate for (rate,) in watch.rates] == pytest.approx(
        [1e-2 * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    )


def test_curves(trained):
    first, *_, last = trained[3].metrics
    assert last["train/encoder"] == pytest.approx(last["train/residual"] + last["train/feature"], rel=1e-5)
    assert last["train/encoder"] < first["train/encoder"] and last["train/encoder_gradient"] > 0


def test_resumed_with_more_epochs_its_rate_goes_on_falling(trained, root, tmp_path):
    watch, longer = Watch(), make(make_gan(ema=0.8), encoder_epochs=4)
    data = make_data(root)
    data.first_epoch = GAN_EPOCHS
    fit(longer, data, tmp_path, ckpt=trained[4] / "GANDetector.ckpt", callbacks=[watch])
    expected = [1e-2 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(4, 8)]
    assert [rate for (rate,) in watch.rates] == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_generated_images_and_clipping(root, tmp_path, precision):
    watch, sgd = Watch(), partial(torch.optim.SGD, lr=1.0)
    module = make(encoder_images="generated", optimizer=sgd, clip=1e-4)
    fit(module, make_data(root), tmp_path, 1, callbacks=[watch], precision=precision)
    assert watch.moved("encoder") == [0, 1] and math.isfinite(module.calibration.pooled.image)
    old, new = (torch.cat([p.flatten() for k, p in w.items() if "encoder" in k]) for w in watch.weights[:2])
    assert float((new - old).norm()) == pytest.approx(1e-4, rel=0.01)  # the whole network's norm
    assert new.dtype == torch.float32


def test_a_diverged_encoder_stops(root, tmp_path):
    module = make()
    module.kappa = math.inf
    with pytest.raises(UserError, match="diverged"):
        fit(module, make_data(root), tmp_path)
    with pytest.raises(UserError, match=r"train/encoder .* epoch 1.*encoder_optimizer\.lr"):  # and without a validation
        fit(module, make_data(root), tmp_path, check_val_every_n_epoch=2)
    assert not (tmp_path / "GANDetector.ckpt").exists()


# calibration


def test_terms_of_the_normals_are_standardized(trained):
    module, data, trainer, _, _ = trained
    with torch.no_grad():
        terms, _ = module.scorer.terms(module.networks, images(data, "val"))
        pasted = torch.cat([data.val_dataloader().dataset.__getitems__([i])["image"] for i in (1, 3, 5, 7)])
        others, _ = module.scorer.terms(module.networks, pasted.float() / 255)
    for column, name in enumerate(TERMS):
        standard = (terms[:, column].double() - module.term_mean[column]) / module.term_deviation[column]
        assert float(standard.mean()) == pytest.approx(0, abs=1e-3), name
        assert float(standard.std(unbiased=False)) == pytest.approx(1, abs=1e-3), name
    score = module.mix(terms)
    assert module.calibration.pooled.image == pytest.approx(float(score.max()), abs=1e-4)  # of four
    expected = auroc(torch.cat([score, module.mix(others)]), torch.tensor([0] * 4 + [1] * 4))
    assert float(trainer.callback_metrics["val/auroc"]) == pytest.approx(expected)


def test_mixture_known_values():
    module = make(scorer=InversionScorer(weights={"residual": 2.0, "latent_norm": -1.0}))
    module.term_mean.copy_(torch.tensor([1.0, 1.0, 0.0]))
    module.term_deviation.copy_(torch.tensor([2.0, 4.0, torch.inf]))
    terms = torch.tensor([[3.0, 5.0, 9.0], [1.0, 1.0, -9.0]])
    torch.testing.assert_close(module.mix(terms), torch.tensor([2 * 1.0 - 1.0, 0.0]))
    module.scorer = InversionScorer(weights={"feature": 1.0})  # a constant term: divided by infinity
    assert torch.equal(module.mix(terms), torch.zeros(2))


def test_a_single_normal_image_leaves_the_terms_as_they_are(root):
    module, data = make(), make_data(root, val_fraction=0.05)
    make_trainer().validate(module, data, verbose=False)
    assert module.term_deviation.tolist() == [1, 1, 1] and len(data.datasets["val"].images) == 1
    assert len({float(module.mix(torch.full((1, 3), value))) for value in (0.0, 1.0, 2.0)}) == 3


def test_constant_terms_say_nothing(trained):
    data = trained[1]
    module = make(scorer=InversionScorer(weights={"latent_norm": 1.0, "residual": 1.0}))
    module.encoder.normalize_latent = True  # all latents have one norm
    make_trainer().validate(module, data, verbose=False)
    assert module.term_deviation.isinf().tolist() == [False, True, False]
    with torch.no_grad():
        terms, _ = module.scorer.terms(module.networks, images(data, "val"))
    standard = (terms[:, 0] - module.term_mean[0]) / module.term_deviation[0]
    torch.testing.assert_close(module.mix(terms), standard.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["encoder", "gradient", "encoder+gradient"])
def test_every_method_runs_under_the_test_loop(trained, method, monkeypatch):
    module, data = trained[:2]
    monkeypatch.setattr(module, "scorer", InversionScorer(method, steps=4, restarts=2 if method == "gradient" else 1))
    make_trainer().test(module, data, verbose=False)
    terms, _ = module.scorer.terms(module.networks, images(data, "test"))
    found = torch.tensor([row.prediction.score for row in module.predictions])
    assert len(found) == 6 and found.unique().numel() == 6
    torch.testing.assert_close(found, module.mix(terms), atol=1e-4, rtol=1e-4)
    assert all(p.grad is None for p in module.parameters())


def test_thesis_score_is_not_standardized(trained, monkeypatch):
    module, data = trained[:2]
    monkeypatch.setattr(module, "scorer", InversionScorer(score="thesis", lam=0.3))
    with torch.no_grad():
        expected = module.scorer.terms(module.networks, images(data, "val"))[1]["image"]
        assert torch.equal(module.score({"image": images(data, "val")})["image"], expected)


# settings


REFUSED = {
    "images": ({"encoder_images": "fake"}, "encoder_images .*fake"),
    "epochs": ({"encoder_epochs": 1e1}, r"encoder_epochs .*10\.0"),
    "kappa": ({"kappa": math.nan}, "kappa .*nan"),
    "clip": ({"clip": -1.0}, r"clip .*-1\.0"),
    "untrained encoder": ({"encoder_epochs": 0}, "method=encoder .*encoder_epochs"),
    "no encoder": ({"encoder": False}, "method=encoder .*encoder"),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        make(**settings)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (Encoder(8, 3, 6, 4), r"encoder\.channels=3 .*channels=1"),
        (Encoder(8, 1, 5, 4), r"encoder\.latent=5 .*latent=6"),
    ],
)
def test_an_encoder_that_does_not_fit(encoder, said):
    with pytest.raises(ValueError, match=said):
        GANDetector(make_gan(), encoder, InversionScorer(), torch.optim.Adam)


def test_stages():
    module = make(encoder=False, scorer=InversionScorer("gradient"))
    assert module.pretraining is module.gan and module.num_epochs(50, lambda: 1) == 0  # it is calibrated only
    assert make().num_epochs(50, lambda: 1) == ENCODER_EPOCHS
    assert make(pretrained_gan="runs/gan").pretraining is None

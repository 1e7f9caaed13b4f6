import math
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from makers import fake_mvtec
from pytorch_lightning import Trainer

from adlight.data.datamodule import AnomalyDataModule
from adlight.data.mvtec import MVTecAD
from adlight.gan import objectives as wgan
from adlight.gan.inversion import InversionScorer, feature_distance
from adlight.gan.module import GANModule, averaged
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.objectives import WGAN, WGANGP, AdversarialObjective
from adlight.metrics.image import auroc
from adlight.rng import derive_seed
from adlight.runs.checkpoints import BestAndLast
from adlight.types import UserError

GAN_EPOCHS, ENCODER_EPOCHS, BATCHES = 6, 2, 2  # 20 images, 4 of them held out; batches of 8
NETWORKS = ("critic", "generator", "encoder")
SIZE, LATENT = 8, 6


ADAM = partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.9))


def make(seed=0, encoder=True, maker=ADAM, **settings):
    torch.manual_seed(seed)
    networks = Generator(SIZE, 1, LATENT, 4), Critic(SIZE, 1, 4), Encoder(SIZE, 1, LATENT, 4) if encoder else None
    defaults = dict(objective=WGANGP(), scorer=InversionScorer(), encoder_epochs=ENCODER_EPOCHS)
    makers = {f"{name}_optimizer": maker for name in NETWORKS}
    return GANModule(*networks, **(defaults | makers | settings))


def fit(root, folder, module=None, ckpt=None, callbacks=(), max_epochs=GAN_EPOCHS, **settings):
    """Train as `adlight.train` does; returns module, data and trainer."""
    pl.seed_everything(0, verbose=False)
    module = make() if module is None else module
    sizes = dict(image_size=SIZE, channels=1, batch_size=8, eval_batch_size=3, val_fraction=0.2, num_workers=0)
    data = AnomalyDataModule(MVTecAD, root=root, **sizes)
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[BestAndLast(str(folder)), *callbacks],
        **settings,
    )
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module, data, trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fake_mvtec(tmp_path_factory.mktemp("data"), ("bottle",), train=20, test=2, size=SIZE)


def weights(module):
    networks = {name: getattr(module, name) for name in NETWORKS if getattr(module, name) is not None}
    return {name: [p.detach().clone() for p in network.parameters()] for name, network in networks.items()}


class Watch(pl.Callback):
    """Notes what each batch is and does."""

    def __init__(self):
        self.images, self.weights, self.rates, self.steps, self.left = [], [], [], [], []
        self.validated, self.metrics = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.images.append(batch["image"].clone())
        if not self.weights:
            self.weights.append(weights(module))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.weights.append(weights(module))
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])
        self.steps.append(int(module.generator_steps))
        self.left += [name for name, p in module.named_parameters() if p.grad is not None]

    def on_validation_end(self, trainer, module):
        self.validated.append(trainer.current_epoch)

    def on_train_epoch_end(self, trainer, module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def moved(self, name):
        """Which batches changed a network."""
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return [
            i
            for i, (old, new) in enumerate(pairs)
            if not all(torch.equal(a, b) for a, b in zip(old[name], new[name], strict=True))
        ]


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


# who moves when


def test_critic_every_batch_generator_every_fifth_over_the_whole_run(trained):
    """Two batches an epoch: a counter of the epoch's would never come to five."""
    module, _, trainer, _, watch = trained
    gan, whole = GAN_EPOCHS * BATCHES, (GAN_EPOCHS + ENCODER_EPOCHS) * BATCHES
    assert len(watch.images) == whole and trainer.current_epoch == GAN_EPOCHS + ENCODER_EPOCHS
    assert watch.moved("critic") == list(range(gan))
    assert watch.moved("generator") == [4, 9]
    assert watch.moved("encoder") == list(range(gan, whole))
    assert watch.steps == [(min(i, gan - 1) + 1) // 5 for i in range(whole)]
    assert int(module.generator_steps) == gan // 5 == module.metadata()["generator_steps"]
    assert "2 generator steps" in module.describe()[0]


def test_no_gradient_is_left_behind(trained):
    assert trained[4].left == []
    assert all(p.grad is None for p in trained[0].parameters())


def test_weights_are_those_of_a_plain_loop(trained):
    """The same training without joined batches, detached steps and shortcuts: autograd's own backward everywhere."""
    watch, reference = trained[4], make()
    for name in NETWORKS:
        for p, start in zip(getattr(reference, name).parameters(), watch.weights[0][name], strict=True):
            assert torch.equal(p, start)
    generator, critic, encoder = reference.generator, reference.critic, reference.encoder
    average = [p.detach().clone() for p in generator.parameters()]
    of_critic, of_generator, of_encoder = (
        torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.5, 0.9)) for net in (critic, generator, encoder)
    )
    updates, gan = 0, GAN_EPOCHS * BATCHES
    for count, real in enumerate(watch.images):
        draws = torch.Generator().manual_seed(derive_seed("gan", 0, count, 0))
        if count == gan:  # the encoder is trained on the average
            for p, mean in zip(generator.parameters(), average, strict=True):
                p.data.copy_(mean)
        if count >= gan:
            of_encoder.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * (count - gan) / 4)) / 2
            made = generator(encoder(real))
            loss = (real - made).square().mean() + feature_distance(critic, real, made).mean()
            of_encoder.zero_grad()
            loss.backward()
            of_encoder.step()
            continue
        fake = generator(torch.randn(len(real), LATENT, generator=draws)).detach()
        e = torch.rand(len(real), 1, 1, 1, generator=draws)
        mixture = (e * real + (1 - e) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixture).sum(), mixture, create_graph=True)
        penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
        of_critic.zero_grad()
        (critic(fake).mean() - critic(real).mean() + 10 * penalty).backward()
        of_critic.step()
        if (count + 1) % 5 == 0:
            of_generator.zero_grad()
            (-critic(generator(torch.randn(len(real), LATENT, generator=draws))).mean()).backward()
            of_generator.step()
            updates += 1
            now = [p.detach().clone() for p in generator.parameters()]
            average = now if updates == 1 else [0.8 * a + 0.2 * b for a, b in zip(average, now, strict=True)]
    for wanted, mean in zip(average, trained[0].ema.network.parameters(), strict=True):
        torch.testing.assert_close(mean.data, wanted, atol=1e-5, rtol=1e-4)
    for name in ("critic", "encoder"):
        for p, mine in zip(getattr(reference, name).parameters(), watch.weights[-1][name], strict=True):
            torch.testing.assert_close(p.data, mine, atol=1e-4, rtol=1e-3)


def test_encoder_s_rate_falls_to_0_and_the_others_stay(trained):
    rates = trained[4].rates
    gan, steps = GAN_EPOCHS * BATCHES, ENCODER_EPOCHS * BATCHES
    assert [rate[:2] for rate in rates] == [[1e-2, 1e-2]] * len(rates)
    wanted = [1e-2 * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
    assert [rate[2] for rate in rates[gan:]] == pytest.approx(wanted)


def test_only_the_encoder_s_epochs_are_validated(trained):
    assert trained[4].validated == [GAN_EPOCHS, GAN_EPOCHS + 1]
    watch = trained[4]
    assert {"train/critic", "train/wasserstein", "train/penalty", "train/gradient_norm"} <= watch.metrics[0].keys()
    assert all(watch.metrics[-1][f"train/{name}_gradient"] > 0 for name in NETWORKS)
    for metrics in watch.metrics[:GAN_EPOCHS]:
        assert metrics["train/critic"] == pytest.approx(
            10 * metrics["train/penalty"] - metrics["train/wasserstein"], rel=1e-4
        )
    last = watch.metrics[-1]
    assert last["train/encoder"] == pytest.approx(last["train/residual"] + last["train/feature"], rel=1e-5)
    assert watch.metrics[-1]["train/encoder"] < watch.metrics[GAN_EPOCHS]["train/encoder"]


def test_length_by_generator_steps(root, tmp_path):
    watch = Watch()
    module, _, trainer = fit(root, tmp_path, make(generator_steps=3, n_critic=3, encoder_epochs=1), callbacks=[watch])
    assert trainer.current_epoch == 5 + 1  # 9 critic steps in batches of 2 an epoch
    assert int(module.generator_steps) == 10 // 3 and watch.moved("generator") == [2, 5, 8]


def test_without_an_encoder_every_epoch_is_validated(root, tmp_path):
    watch = Watch()
    scorer = InversionScorer("gradient", steps=3)
    fit(root, tmp_path, make(encoder=False, encoder_epochs=0, scorer=scorer), None, [watch], max_epochs=2)
    assert watch.validated == [0, 1]


def test_generated_images_need_no_real_ones(root, tmp_path):
    module = make(encoder_images="generated", encoder_epochs=1, n_critic=1, clip=1e-3)
    watch = Watch()
    fit(root, tmp_path, module, None, [watch], max_epochs=1)
    assert watch.moved("encoder") == [2, 3] and watch.moved("generator") == [0, 1]


# checkpoints, resume


def test_resume_in_either_phase(trained, root, tmp_path):
    class Stop(pl.Callback):
        def __init__(self, epoch):
            self.epoch = epoch

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.current_epoch == self.epoch and batch_idx == 1:
                raise KeyError("power cut")

    checkpoint = None
    for epoch in (3, GAN_EPOCHS + 1):
        with pytest.raises(KeyError):
            fit(root, tmp_path, make(seed=epoch if checkpoint else 0, ema=0.8), checkpoint, [Stop(epoch)])
        checkpoint = tmp_path / "last.ckpt"
        assert torch.load(checkpoint, weights_only=True)["epoch"] == epoch - 1
    resumed, _, trainer = fit(root, tmp_path / "resumed", make(seed=5, ema=0.8), checkpoint)
    assert same(resumed, trained[0])
    assert trainer.current_epoch == GAN_EPOCHS + ENCODER_EPOCHS


def test_resume_with_more_epochs_of_the_encoder(trained, root, tmp_path):
    watch = Watch()
    longer = make(seed=5, ema=0.8, encoder_epochs=4)
    _, _, trainer = fit(root, tmp_path, longer, trained[3] / "last.ckpt", [watch])
    assert trainer.current_epoch == GAN_EPOCHS + 4 and watch.moved("encoder") == [0, 1, 2, 3]
    wanted = [1e-2 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(4, 8)]  # falling, not rising again
    assert [rate[2] for rate in watch.rates] == pytest.approx(wanted)


@pytest.mark.parametrize(("epochs", "refused"), [(GAN_EPOCHS + 1, True), (GAN_EPOCHS - 1, True), (GAN_EPOCHS, False)])
def test_the_gan_s_length_stays_once_the_encoder_has_begun(trained, root, tmp_path, epochs, refused):
    again = make(ema=0.8, encoder_epochs=3)
    if refused:
        with pytest.raises(UserError, match=f"has {GAN_EPOCHS} epochs, and 8 epochs are done: {epochs} is no length"):
            fit(root, tmp_path, again, trained[3] / "last.ckpt", max_epochs=epochs)
    else:
        _, _, trainer = fit(root, tmp_path, again, trained[3] / "last.ckpt", max_epochs=epochs)
        assert trainer.current_epoch == GAN_EPOCHS + 3


def test_a_gan_that_was_stopped_may_have_another_length_and_rate(root, tmp_path):
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise KeyError("power cut")

    with pytest.raises(KeyError):
        fit(root, tmp_path, make(), callbacks=[Stop()])
    watch, slower = Watch(), partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9))
    module, _, trainer = fit(root, tmp_path, make(maker=slower), tmp_path / "last.ckpt", [watch], max_epochs=3)
    assert trainer.current_epoch == 3 + ENCODER_EPOCHS and module.gan_epochs == 3
    assert [rates[:2] for rates in watch.rates[:2]] == [[1e-3, 1e-3]] * 2  # not the checkpoint's


def test_a_trial_of_few_batches_is_short(root, tmp_path, capsys):
    module = make(generator_steps=1000, encoder_epochs=20)
    _, _, trainer = fit(root, tmp_path, module, max_epochs=1, limit_train_batches=2, check_val_every_n_epoch=50)
    assert trainer.current_epoch == 2 and module.calibration.pooled.image is not None
    assert "limit_train_batches=2: 1 GAN and 1 encoder epochs, whatever" in capsys.readouterr().out


def test_generator_steps_overrule_epochs_and_say_so(root, tmp_path, capsys):
    module, _, trainer = fit(root, tmp_path, make(generator_steps=1), max_epochs=50)
    assert trainer.current_epoch == 3 + ENCODER_EPOCHS and int(module.generator_steps) == 1  # a step after 5 batches
    assert "3 epochs make model.generator_steps=1, whatever trainer.max_epochs says" in capsys.readouterr().out


# calibration


def test_a_single_normal_image_leaves_the_terms_as_they_are(trained, root, tmp_path):
    data = AnomalyDataModule(MVTecAD, root=root, image_size=SIZE, channels=1, val_fraction=0.05, num_workers=0)
    module = make()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(module, data, verbose=False)
    assert module.term_deviation.tolist() == [1, 1, 1] and len(data.datasets["val"].images) == 1
    assert len({float(module.mixture(torch.full((1, 3), value))) for value in (0.0, 1.0, 2.0)}) == 3


def test_terms_of_the_normals_are_standardised(trained):
    module, data, trainer, _, _ = trained
    with torch.no_grad():
        normal = data.datasets["val"].images.float() / 255
        terms, _ = module.scorer.terms(module.networks, normal)
        pasted = torch.cat([data.val_dataloader().dataset.__getitems__([i])["image"] for i in (1, 3, 5, 7)])
        others, _ = module.scorer.terms(module.networks, pasted.float() / 255)
    for column, name in ((0, "residual"), (1, "origin"), (2, "feature")):
        standard = (terms[:, column].double() - module.term_mean[column]) / module.term_deviation[column]
        assert float(standard.mean()) == pytest.approx(0, abs=1e-3), name
        assert float(standard.std(unbiased=False)) == pytest.approx(1, abs=1e-3), name
    score = module.mixture(terms)
    assert float(score.mean()) == pytest.approx(0, abs=1e-3)
    assert module.calibration.pooled.image == pytest.approx(float(score.double().quantile(0.95)), abs=1e-4)
    wanted = auroc(torch.cat([score, module.mixture(others)]), torch.tensor([0] * 4 + [1] * 4))
    assert float(trainer.callback_metrics["val/auroc"]) == pytest.approx(wanted)


def test_constant_terms_say_nothing(trained, root):
    module, data = make(scorer=InversionScorer(weights={"origin": 1.0, "residual": 1.0})), trained[1]
    module.encoder.on_sphere = True  # all latents have one norm
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.validate(module, data, verbose=False)
    assert module.term_deviation.isinf().tolist() == [False, True, False]
    with torch.no_grad():
        terms, _ = module.scorer.terms(module.networks, data.datasets["val"].images.float() / 255)
    standard = (terms[:, 0] - module.term_mean[0]) / module.term_deviation[0]
    torch.testing.assert_close(module.mixture(terms), standard.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["encoder", "gradient", "encoder+gradient"])
def test_every_method_runs_under_the_test_loop(trained, method, monkeypatch):
    module, data = trained[:2]
    monkeypatch.setattr(module, "scorer", InversionScorer(method, steps=4, restarts=2 if method == "gradient" else 1))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(module, data, verbose=False)
    images = data.datasets["test"].images.float() / 255
    terms, _ = module.scorer.terms(module.networks, images)
    found = torch.tensor([row.prediction.score for row in module.predictions])
    assert len(found) == 6 and found.unique().numel() == 6
    torch.testing.assert_close(found, module.mixture(terms), atol=1e-4, rtol=1e-4)
    assert all(p.grad is None and (p.requires_grad or "ema" in name) for name, p in module.named_parameters())


def test_thesis_score_is_not_standardised(trained, monkeypatch):
    module, data = trained[:2]
    monkeypatch.setattr(module, "scorer", InversionScorer(score="thesis", balance=0.3))
    image = data.datasets["val"].images.float() / 255
    with torch.no_grad():
        wanted = module.scorer.terms(module.networks, image)[1]["image"]
        assert torch.equal(module.score({"image": image})["image"], wanted)


# clipping, precision


def test_gradients_are_clipped(trained, root, tmp_path):
    descend = partial(torch.optim.SGD, lr=1.0)
    watch = Watch()
    fit(root, tmp_path, make(maker=descend, clip=1e-3, n_critic=1, encoder_epochs=1), None, [watch], max_epochs=1)
    for i, names in enumerate([("critic", "generator")] * BATCHES + [("encoder",)]):
        for name in names:
            old, new = (torch.cat([p.flatten() for p in watch.weights[k][name]]) for k in (i, i + 1))
            assert float((new - old).norm()) == pytest.approx(1e-3, rel=0.01)  # the whole network's norm


def test_bf16_trains_every_network(root, tmp_path):
    watch = Watch()
    module = make(n_critic=1, encoder_epochs=1)
    fit(root, tmp_path, module, None, [watch], max_epochs=1, precision="bf16-mixed")
    for name, batches in (("critic", [0, 1]), ("generator", [0, 1]), ("encoder", [2, 3])):
        assert watch.moved(name) == batches
        for start, end in zip(watch.weights[0][name][:-1], watch.weights[-1][name][:-1], strict=True):
            assert not torch.equal(start, end), name
        assert all(p.dtype == torch.float32 for p in watch.weights[-1][name])
    assert math.isfinite(module.calibration.pooled.image)


def test_bf16_generator_meets_the_critic_of_after_its_step(root, tmp_path):
    """Autocast could keep the weights that it has cast until the batch ends (Lightning tells it not to)."""
    watch = Watch()
    module = make(objective=WGAN(clip=0.3), maker=partial(torch.optim.Adam, lr=0.1), n_critic=1, encoder_epochs=1)
    fit(root, tmp_path, module, None, [watch], max_epochs=1, limit_train_batches=1, precision="bf16-mixed")
    start, (image, *_) = make(), watch.images
    draws = torch.Generator().manual_seed(derive_seed("gan", 0, 0, 0))
    losses = []
    for critic_weights in (watch.weights[1]["critic"], watch.weights[0]["critic"]):  # after its step, and before
        for p, value in zip(start.critic.parameters(), critic_weights, strict=True):
            p.data.copy_(value)
        draws.manual_seed(derive_seed("gan", 0, 0, 0))
        torch.randn(len(image), LATENT, generator=draws)  # the critic's
        z = torch.randn(len(image), LATENT, generator=draws)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses.append(-float(start.critic(start.generator(z)).float().mean()))
    assert abs(losses[0] - losses[1]) > 0.01
    assert watch.metrics[0]["train/generator"] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true", "64-true"])
def test_other_precisions_are_refused(monkeypatch, precision):
    monkeypatch.setattr(GANModule, "trainer", SimpleNamespace(precision=precision))
    with pytest.raises(UserError, match=f"trainer.precision={precision}: the GAN trains in 32-true or bf16-mixed"):
        make().on_fit_start()


# bad luck, bad settings


class NaNAfter(AdversarialObjective):
    """A loss that is no number from its third call on."""

    calls = 0

    def compare(self, real, fake):
        self.calls += 1
        return super().compare(real, fake) * (math.nan if self.calls > 2 else 1.0)


def test_diverged_critic_names_the_batch_and_leaves_the_last_good_epoch(root, tmp_path):
    said = r"batch 3 \(epoch 2\): .*critic_optimizer\.lr"
    with pytest.raises(UserError, match=said):
        fit(root, tmp_path, make(objective=NaNAfter()))
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["epoch"] == 0
    assert all(torch.isfinite(value).all() for name, value in content["state_dict"].items() if name != "_extra_state")


def test_diverged_encoder_names_its_own_rate(root, tmp_path):
    module = make()
    module.kappa = math.inf
    said = r"batch 3 \(epoch 2\): .*encoder_optimizer\.lr"
    with pytest.raises(UserError, match=said):  # from its first batch on, so also before it is validated
        fit(root, tmp_path, module, max_epochs=1)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


REFUSED = {
    "encoder_images": ({"encoder_images": "fake"}, "'fake' is unknown: real or generated"),
    "n_critic": ({"n_critic": 0}, "n_critic.*0"),
    "generator_steps": ({"generator_steps": 0}, r"generator_steps.*0"),
    "encoder_epochs": ({"encoder_epochs": 1e1}, r"encoder_epochs.*10\.0"),
    "kappa": ({"kappa": math.nan}, r"kappa.*nan"),
    "clip": ({"clip": -1.0}, r"clip.*-1\.0"),
    "ema": ({"ema": 1.0}, r"ema.*1\.0"),
    "untrained encoder": ({"encoder_epochs": 0}, "leaves the encoder of model.scorer.method=encoder untrained"),
    "no encoder": ({"encoder": False}, "without an encoder use model.scorer.method=gradient"),
    "nothing to train": (
        {"generator_from": "run", "encoder_epochs": 0, "scorer": InversionScorer("gradient")},
        "leaves nothing to train",
    ),
}


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        make(**settings)


def test_networks_that_do_not_fit_each_other():
    generator, makers = Generator(8, 1, 6, 4), [torch.optim.Adam] * 3
    for critic, encoder, said in (
        (Critic(16, 1, 4), Encoder(8, 1, 6, 4), r"critic\.image_size=16 does not fit model\.generator\.image_size=8"),
        (Critic(8, 1, 4), Encoder(8, 3, 6, 4), r"encoder\.channels=3 does not fit model\.generator\.channels=1"),
        (Critic(8, 1, 4), Encoder(8, 1, 5, 4), r"encoder\.latent=5 does not fit model\.generator\.latent=6"),
    ):
        with pytest.raises(ValueError, match=said):
            GANModule(generator, critic, encoder, WGANGP(), InversionScorer(), *makers)


# two processes


STEPPED = {
    "plain": dict(objective=WGANGP()),
    "clip, drift and average": dict(objective=WGANGP(drift=0.5), clip=1e-2, kappa=3.0, ema=0.5),
    "bounded weights": dict(objective=WGAN(clip=0.05, drift=0.5)),
    "encoder of generated images": dict(objective=WGANGP(), encoder_images="generated"),
}


def steps_of_all(rank, world, folder):
    """Each network's own step on this process's share of a batch and of its draws; what came of it, into a file."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.set_num_threads(1)

    def share(whole):
        return whole.chunk(world)[rank]

    def mixture(real, fake, draws):
        e = share(torch.rand(world * len(real), 1, 1, 1, generator=draws))
        return e * real + (1 - e) * fake

    def note(into, name, optimizer, *_):
        into[name] = [p.grad.clone() for p in optimizer.param_groups[0]["params"]]

    if world > 1:  # one process draws as it always does
        wgan.interpolate = mixture
    found = {}
    for case, settings in STEPPED.items():
        module, gradients, terms = make(maker=partial(torch.optim.SGD, lr=0.1), **settings), {}, {}
        module.generator.up[-1].weight.data.mul_(30)  # images that differ, as a trained generator's do
        if world > 1:
            module.latents = lambda count, draws: share(torch.randn(world * count, LATENT, generator=draws))
        optimizers = module.configure_optimizers()
        module.optimizers = lambda made=optimizers: made
        draws = torch.Generator().manual_seed(7)
        real = share(torch.rand(8, 1, SIZE, SIZE, generator=draws))
        for name, optimizer in zip(NETWORKS, optimizers, strict=True):
            optimizer.register_step_pre_hook(partial(note, gradients, name))
        terms["critic"] = module.critic_step(real, draws)
        terms["generator"] = module.generator_step(len(real), draws)
        terms["encoder"] = module.encoder_step(real, draws)
        terms = {(step, name): float(term.detach()) for step, of in terms.items() for name, term in of.items()}
        found[case] = gradients, terms, dict(module.named_parameters())
    torch.save(found, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def norm(tensors):
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def test_two_processes_step_as_one_does_on_the_joined_batch(tmp_path):
    mp.spawn(steps_of_all, (2, tmp_path), nprocs=2)
    steps_of_all(0, 1, tmp_path)
    alone, *both = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for case, settings in STEPPED.items():
        wanted, terms, weights_after = alone[case]
        assert list(wanted) == list(NETWORKS)
        for gradients, _, its_weights in (found[case] for found in both):
            for name in NETWORKS:
                missed = [a - b for a, b in zip(gradients[name], wanted[name], strict=True)]
                assert norm(missed) < 1e-5 * norm(wanted[name]), (case, name)
            for name, weight in weights_after.items():
                torch.testing.assert_close(its_weights[name], weight, atol=1e-5, rtol=1e-5)
        assert all(torch.equal(both[0][case][2][name], both[1][case][2][name]) for name in weights_after), case
        if "clip" in settings:
            for name in NETWORKS:
                assert norm(wanted[name]) == pytest.approx(settings["clip"], rel=1e-4), name
        for name, term in terms.items():
            mine, other = (found[case][1][name] for found in both)
            assert (mine + other) / 2 == pytest.approx(term, rel=1e-4, abs=1e-5), (case, name)
            shared = name[1].endswith("_gradient")  # taken after the processes' mean; their shares differ
            assert (mine == other) == shared, (case, name)


def test_each_process_and_step_has_its_own_draws(monkeypatch):
    """Two processes with the same latents would learn from the same images twice."""
    normal, between, noted = GANModule.latents, wgan.interpolate, []

    def latents(module, count, draws):
        noted.append(normal(module, count, draws))
        return noted[-1]

    def interpolate(real, fake, draws):
        e = between(torch.ones_like(real), torch.zeros_like(fake), draws)
        noted.append(e[:, 0, 0, 0])
        return e * real + (1 - e) * fake

    monkeypatch.setattr(GANModule, "latents", latents)
    monkeypatch.setattr(wgan, "interpolate", interpolate)

    def drawn(rank, count):
        module, place = make(n_critic=1), SimpleNamespace(total_batch_idx=count)
        optimizers, noted[:] = module.configure_optimizers(), []
        module.optimizers, module.note = (lambda: optimizers), (lambda *_: None)
        trainer = SimpleNamespace(global_rank=rank, current_epoch=0, fit_loop=place)
        module.trainer, module.gan_epochs = trainer, 1
        module.training_step({"image": torch.full((4, 1, SIZE, SIZE), 0.5)}, 0)
        return noted[:]

    first, again, second, later = drawn(0, 3), drawn(0, 3), drawn(1, 3), drawn(0, 4)
    assert len(first) == 3  # the critic's latents and its penalty's places, the generator's latents
    for mine, same_place, of_other_process, of_other_step in zip(first, again, second, later, strict=True):
        assert torch.equal(mine, same_place)
        assert not torch.isclose(mine, of_other_process).any()
        assert not torch.isclose(mine, of_other_step).any()
    assert not torch.isclose(first[0], first[2]).any()


def test_one_process_has_nothing_to_average():
    gradients = [torch.ones(2), torch.zeros(3)]
    assert averaged(gradients) is gradients

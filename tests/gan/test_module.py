import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from gan.tiny import ADAM, BATCHES, GAN_EPOCHS, LATENT, SIZE, Watch, fit, make_data, make_gan
from makers import fake_mvtec

from adlight.gan import objectives
from adlight.gan.module import AdversarialModule
from adlight.gan.networks import Critic, Generator
from adlight.gan.objectives import WGAN, WGANGP, AdversarialObjective
from adlight.rng import derive_seed
from adlight.types import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fake_mvtec(tmp_path_factory.mktemp("data"), ("bottle",), train=20, test=2, size=SIZE)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """One run that several tests look at: module, watch, checkpoint."""
    folder, watch, module = tmp_path_factory.mktemp("run"), Watch(), make_gan(ema=0.8)
    fit(module, make_data(root), folder, callbacks=[watch])
    return module, watch, folder / "AdversarialModule.ckpt"


def test_critic_every_batch_generator_every_fifth_over_the_whole_run(trained):
    """Two batches an epoch: a counter of the epoch's would never come to five."""
    module, watch, _ = trained
    assert watch.moved("critic") == list(range(GAN_EPOCHS * BATCHES))
    assert watch.moved("generator") == watch.moved("ema") == [4, 9] and int(module.generator_steps) == 2
    assert [metrics["generator_steps"] for metrics in watch.metrics] == [0, 0, 1, 1, 2, 2]
    assert watch.left == []


def test_weights_are_those_of_a_plain_loop(trained):
    """The same training without joined batches, closed forms and shortcuts: autograd's own backward everywhere."""
    module, watch, _ = trained
    reference = make_gan()
    generator, critic = reference.generator, reference.critic
    of_critic, of_generator = (
        torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.5, 0.9)) for net in (critic, generator)
    )
    average = None
    for step, real in enumerate(watch.images):
        rng = torch.Generator().manual_seed(derive_seed("gan", 0, step, 0))
        fake = generator(torch.randn(len(real), LATENT, generator=rng)).detach()
        e = torch.rand(len(real), 1, 1, 1, generator=rng)
        mixture = (e * real + (1 - e) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixture).sum(), mixture, create_graph=True)
        penalty = ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
        of_critic.zero_grad()
        (critic(fake).mean() - critic(real).mean() + 10 * penalty).backward()
        of_critic.step()
        if (step + 1) % 5 == 0:
            of_generator.zero_grad()
            (-critic(generator(torch.randn(len(real), LATENT, generator=rng))).mean()).backward()
            of_generator.step()
            now = [p.detach().clone() for p in generator.parameters()]
            average = now if average is None else [0.8 * a + 0.2 * b for a, b in zip(average, now, strict=True)]
    for expected, mean in zip(average, module.trained_generator.parameters(), strict=True):
        torch.testing.assert_close(mean.data, expected, atol=1e-5, rtol=1e-4)
    for expected, mine in zip(critic.parameters(), module.critic.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=1e-3)


def test_curves(trained):
    for metrics in trained[1].metrics:
        assert metrics["train/critic"] == pytest.approx(
            10 * metrics["train/penalty"] - metrics["train/wasserstein"], rel=1e-4
        )
        assert metrics["train/gradient_norm"] > 0 and metrics["train/critic_gradient"] > 0
    assert trained[1].metrics[-1]["train/generator_gradient"] > 0


def test_length_by_generator_steps():
    assert make_gan(generator_steps=3, n_critic=3).num_epochs(50, lambda: 2) == 5  # 9 critic steps
    assert make_gan().num_epochs(50, lambda: pytest.fail("nobody needs the data for that")) == 50


def test_resumed_it_is_the_run_that_never_stopped(trained, root, tmp_path):
    data = make_data(root)
    fit(make_gan(ema=0.8), data, tmp_path, 3)
    data.first_epoch = 0
    resumed = make_gan(seed=5, ema=0.8)
    fit(resumed, data, tmp_path, ckpt=tmp_path / "AdversarialModule.ckpt")
    expected, found = trained[0].state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def two_groups(parameters, lr):
    first, *others = parameters
    return torch.optim.Adam([{"params": [first], "lr": 0.1 * lr}, {"params": others}], lr=lr)


def test_rates_of_groups_survive_a_start_and_follow_the_config_when_resumed(root, tmp_path):
    fresh, resumed = Watch(), Watch()
    fit(make_gan(optimizer=partial(two_groups, lr=1e-2), n_critic=1), make_data(root), tmp_path, 1, callbacks=[fresh])
    assert fresh.rates == [[1e-3, 1e-2] * 2] * BATCHES
    slower, ckpt = make_gan(optimizer=partial(two_groups, lr=1e-3), n_critic=1), tmp_path / "AdversarialModule.ckpt"
    fit(slower, make_data(root), tmp_path, 2, ckpt, [resumed])
    assert resumed.rates == [[1e-4, 1e-3] * 2] * BATCHES  # not the checkpoint's


# precision, bad luck, bad settings


def test_bf16_generator_meets_the_critic_of_after_its_step(root, tmp_path):
    """Autocast could keep the weights that it has cast until the batch ends (Lightning tells it not to)."""
    watch = Watch()
    module = make_gan(objective=WGAN(clip=0.3), optimizer=partial(torch.optim.Adam, lr=0.1), n_critic=1)
    fit(module, make_data(root), tmp_path, 1, None, [watch], limit_train_batches=1, precision="bf16-mixed")
    assert watch.moved("critic") == watch.moved("generator") == [0]
    assert all(p.dtype == torch.float32 for p in module.parameters())
    start, (image, *_) = make_gan(), watch.images
    losses = []
    for weights in (watch.weights[1], watch.weights[0]):  # after the critic's step, and before
        start.critic.load_state_dict({k.removeprefix("critic."): v for k, v in weights.items() if "critic" in k})
        rng = torch.Generator().manual_seed(derive_seed("gan", 0, 0, 0))
        torch.randn(len(image), LATENT, generator=rng)  # the critic's
        z = torch.randn(len(image), LATENT, generator=rng)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses.append(-float(start.critic(start.generator(z)).float().mean()))
    assert abs(losses[0] - losses[1]) > 0.01
    assert watch.metrics[0]["train/generator"] == pytest.approx(losses[0], rel=1e-5)


class NaNAfter(AdversarialObjective):
    """A loss that is no number from its third call on."""

    calls = 0

    def compare(self, real, fake):
        self.calls += 1
        return super().compare(real, fake) * (math.nan if self.calls > 2 else 1.0)


def test_a_diverged_gan_stops_and_leaves_its_last_good_epoch(root, tmp_path):
    with pytest.raises(UserError, match=r"train/critic .* epoch 2.*critic_optimizer\.lr"):
        fit(make_gan(objective=NaNAfter()), make_data(root), tmp_path)
    content = torch.load(tmp_path / "AdversarialModule.ckpt", weights_only=True)
    assert content["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in content["state_dict"].values())


REFUSED = [("n_critic", 0), ("generator_steps", 0), ("clip", -1.0), ("ema", 1.0)]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        make_gan(**{name: value})


def test_networks_that_do_not_fit_each_other():
    with pytest.raises(ValueError, match=r"critic\.image_size=16 .* generator\.image_size=8"):
        AdversarialModule(Generator(8, 1, 6, 4), Critic(16, 1, 4), WGANGP(), ADAM, ADAM)


def test_each_process_and_step_has_its_own_draws(monkeypatch):
    """Two processes with the same latents would learn from the same images twice."""
    draw, mix, noted = AdversarialModule.draw_latents, objectives.interpolate, []

    def draw_latents(module, count, rng):
        noted.append(draw(module, count, rng))
        return noted[-1]

    def interpolate(real, fake, rng):
        e = mix(torch.ones_like(real), torch.zeros_like(fake), rng)
        noted.append(e[:, 0, 0, 0])
        return e * real + (1 - e) * fake

    monkeypatch.setattr(AdversarialModule, "draw_latents", draw_latents)
    monkeypatch.setattr(objectives, "interpolate", interpolate)

    def drawn(rank, step):
        module, noted[:] = make_gan(n_critic=1), []
        optimizers = module.configure_optimizers()
        module.optimizers, module.log = (lambda: optimizers), (lambda *_, **__: None)
        module.trainer = SimpleNamespace(global_rank=rank, fit_loop=SimpleNamespace(total_batch_idx=step))
        module.training_step({"image": torch.full((4, 1, SIZE, SIZE), 0.5)}, 0)
        return noted[:]

    first, again, second, later = drawn(0, 3), drawn(0, 3), drawn(1, 3), drawn(0, 4)
    assert len(first) == 3  # the critic's latents and its penalty's places, the generator's latents
    for mine, same_place, of_other_process, of_other_step in zip(first, again, second, later, strict=True):
        assert torch.equal(mine, same_place)
        assert not torch.isclose(mine, of_other_process).any()
        assert not torch.isclose(mine, of_other_step).any()
    assert not torch.isclose(first[0], first[2]).any()

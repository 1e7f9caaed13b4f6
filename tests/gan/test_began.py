"""Boundary equilibrium: the autoencoder critic, its losses, and the control of k_t."""

import pytest
import torch

from adlight.gan.began import BEGAN, AutoencoderCritic
from adlight.gan.networks import Critic


def images(count=3, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def make_critic(k=0.0):
    torch.manual_seed(0)
    critic = AutoencoderCritic(8, 1, 4, hidden=5)
    critic.balance.fill_(k)
    return critic


def loss_of(critic, image):
    """L(v) = |v - D(v)| of each image, value by value."""
    with torch.no_grad():
        y = critic.decoder(critic.encode(critic.features(image)))
    return [
        sum(abs(float(a - b)) for a, b in zip(v.flatten(), d.flatten(), strict=True)) / 64
        for v, d in zip(image, y, strict=True)
    ]


def test_the_critic_s_score_is_its_error():
    critic, image = make_critic(), images()
    assert critic(image).shape == (3, 1)
    assert (-critic(image)[:, 0]).tolist() == pytest.approx(loss_of(critic, image), rel=1e-5)


def test_losses_and_control_are_the_paper_s():
    critic, objective = make_critic(k=0.25), BEGAN(gamma=0.7, rate=0.1)
    real, fake = images(), images(seed=1) * 0.2
    of_real, of_fake = (sum(loss_of(critic, one)) / 3 for one in (real, fake))
    terms = objective.critic_loss(critic, real, fake, torch.Generator())
    assert float(terms["critic"].detach()) == pytest.approx(of_real - 0.25 * of_fake, rel=1e-5)
    assert float(objective.generator_loss(critic, fake).detach()) == pytest.approx(of_fake, rel=1e-5)
    assert float(critic.balance) == pytest.approx(0.25 + 0.1 * (0.7 * of_real - of_fake), rel=1e-5)
    assert float(terms["convergence"]) == pytest.approx(of_real + abs(0.7 * of_real - of_fake), rel=1e-5)
    assert float(terms["balance"]) == 0.25  # that of this step
    terms["critic"].backward()
    assert all(p.grad is not None for p in critic.parameters())


@pytest.mark.parametrize(("k", "real", "fake", "end"), [(0.0, 0, 1, 0.0), (1.0, 1, 0, 1.0)])
def test_k_stays_in_its_range(k, real, fake, end):
    """Where one loss is far above the other's share."""
    critic = make_critic(k)
    with torch.no_grad():
        critic.decoder.up[-1].weight.zero_()
        critic.decoder.up[-1].bias.fill_(-20.0)  # D(v) is black: L(v) = mean v
    images = [torch.full((2, 1, 8, 8), float(one)) for one in (real, fake)]
    BEGAN(rate=10.0).critic_loss(critic, *images, torch.Generator())
    assert float(critic.balance) == end


def test_another_critic_is_refused():
    with pytest.raises(ValueError, match=r"AutoencoderCritic.*Critic"):
        BEGAN().critic_loss(Critic(8, 1, 4), images(), images(), torch.Generator())


def test_a_run_keeps_k(adlight):
    words = [word for word in adlight.gan if not word.startswith("model.gan.n_critic")]
    run = adlight.train(*words, "model/gan/objective=began", "model.gan.critic.hidden=4", "hydra.run.dir=runs/began")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert 0 < float(state["gan.critic.balance"]) < 1  # the critic is far from equilibrium at first
    again = adlight.evaluate(run)
    assert (again / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()

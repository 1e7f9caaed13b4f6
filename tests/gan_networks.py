"""A GAN's networks as they are drawn, to be scored by."""

import torch

from adlight.gan.detector import GAN, InversionDetector
from adlight.gan.networks import Critic, Encoder, Generator


def make_gan_detector(scorer, size=8, latent=6):
    gan = GAN(Generator(size, 1, latent, 4), Critic(size, 1, 4))
    found = InversionDetector(gan, Encoder(size, 1, latent, 4), scorer)
    found.term_mean[:], found.term_deviation[:] = torch.tensor([0.1, -1.0, 0.0]), torch.tensor([0.1, 0.5, 0.2])
    return found

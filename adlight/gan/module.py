"""Training of the GAN by manual optimisation, then of its encoder (thesis, sections 3.3 and 3.4)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator as Draws
from torch import Tensor, nn
from torch.optim import Optimizer

from adlight.detection.module import DIVERGED
from adlight.gan.inversion import InversionScorer, feature_distance
from adlight.gan.networks import Critic, Encoder, Generator
from adlight.gan.objectives import AdversarialObjective
from adlight.gan.scoring import InversionModule
from adlight.rng import derive_seed, to_device
from adlight.types import Batch, UserError, check_integer, check_range

MakesOptimizer = Callable[..., Optimizer]


class GANModule(InversionModule):
    """A GAN of normal images; what its generator cannot show is anomalous.

    First come the GAN's epochs (`trainer.max_epochs`, or as many as `generator_steps` need), a critic step a batch
    and after every n_critic-th one a generator step, counted over the whole run. Then come the encoder's, with
    generator and critic as they are. Only the encoder's epochs are validated; without an encoder, all.

    Args:
        generator, critic: the GAN.
        encoder: finds the latent of an image; None where gradients alone do.
        objective: what generator and critic minimise; None where nothing will be trained.
        scorer: inverts the generator and scores.
        critic_optimizer, generator_optimizer, encoder_optimizer: make the optimisers from parameters.
        n_critic: critic steps for one generator step.
        generator_steps: length of the GAN's training instead of `trainer.max_epochs`; whole epochs are made.
        encoder_epochs: length of the encoder's training.
        encoder_images: what the encoder learns from: `real` training images (Schlegl 2019, izi_f) or `generated` ones
            (Berg 2019).
        kappa: weight of the feature distance in the encoder's loss.
        ema: decay of an average of the generator's weights that is used for everything but its own training; 0 = none.
        clip: largest norm of a network's gradient; 0 = any.
        generator_from: a finished run whose generator and critic are taken as they are; `train.py` loads them.
        seed: of latents and penalties, which depend on it, the step and the process only.

    Raises:
        ValueError: networks that do not fit each other, or a number out of range.
    """

    generator_steps: Tensor
    diverged: Tensor

    def __init__(
        self,
        generator: Generator,
        critic: Critic,
        encoder: Encoder | None,
        objective: AdversarialObjective | None,
        scorer: InversionScorer,
        critic_optimizer: MakesOptimizer,
        generator_optimizer: MakesOptimizer,
        encoder_optimizer: MakesOptimizer,
        n_critic: int = 5,
        generator_steps: int | None = None,
        encoder_epochs: int = 20,
        encoder_images: str = "real",
        kappa: float = 1.0,
        ema: float = 0.0,
        clip: float = 0.0,
        generator_from: str | None = None,
        seed: int = 0,
    ) -> None:
        refuse_misfits(generator, critic, encoder, scorer, encoder_epochs)
        super().__init__(generator, critic, encoder, scorer, ema)
        self.automatic_optimization = False
        if encoder_images not in ("real", "generated"):
            raise ValueError(f"model.encoder_images {encoder_images!r} is unknown: real or generated")
        check_integer("n_critic", n_critic, 1)
        check_integer("encoder_epochs", encoder_epochs, 0)
        if generator_steps is not None:
            check_integer("generator_steps", generator_steps, 1)
        check_range("kappa", kappa)
        check_range("clip", clip)
        if generator_from and not encoder_epochs:
            raise ValueError("model.generator_from with model.encoder_epochs=0 leaves nothing to train")
        self.objective = objective
        self.makers = [critic_optimizer, generator_optimizer, *([encoder_optimizer] if encoder else [])]
        self.n_critic, self.wanted_steps, self.generator_from = n_critic, generator_steps, generator_from
        self.encoder_epochs, self.encoder_images, self.kappa = encoder_epochs, encoder_images, kappa
        self.clip, self.seed, self.gan_epochs = clip, seed, 0
        self.resumed: tuple[int, int] | None = None  # epochs of the GAN by the checkpoint, epochs done
        self.register_buffer("generator_steps", torch.tensor(0))
        self.register_buffer("diverged", torch.tensor(-1), persistent=False)  # the first batch whose loss is no number

    def describe(self) -> list[str]:
        """How long the GAN was trained, and how it is inverted."""
        return [f"GAN: {int(self.generator_steps)} generator steps; inversion: {self.scorer.method}"]

    def metadata(self) -> dict[str, Any]:
        """What belongs into a result besides the metrics."""
        return {"generator_steps": int(self.generator_steps)}

    # training

    def on_fit_start(self) -> None:
        """Find out how many epochs both phases have."""
        trainer = self.trainer
        if trainer.precision not in ("32-true", "bf16-mixed"):
            raise UserError(f"trainer.precision={trainer.precision}: the GAN trains in 32-true or bf16-mixed")
        data = self.datamodule
        images = len(data.records("train")) // trainer.world_size
        if data.batch_size > images:
            raise UserError(f"dataset.batch_size={data.batch_size} is larger than the {images} training images")
        self.validate_every = trainer.check_val_every_n_epoch or 1
        self.gan_epochs = self.length_of_gan()
        if self.resumed is not None and self.gan_epochs != self.resumed[0]:
            was, done = self.resumed
            if done > min(was, self.gan_epochs):
                raise UserError(
                    f"the GAN of this run has {was} epochs, and {done} epochs are done: {self.gan_epochs} is no length "
                    "for it any more (processes and batch size count too); train another run, or an encoder alone by "
                    "model.generator_from"
                )
        total = self.gan_epochs + self.encoder_epochs
        if total // self.validate_every * self.validate_every <= (self.gan_epochs if self.encoder_epochs else 0):
            raise UserError(
                f"the thresholds come from a validation, and none of epochs {self.gan_epochs + 1} to {total} would "
                f"have one: lower trainer.check_val_every_n_epoch={self.validate_every}"
            )
        trainer.fit_loop.max_epochs = total

    def length_of_gan(self) -> int:
        """Epochs of the GAN; what does not count, is said."""
        trainer = self.trainer
        if self.generator_from:
            return 0
        epochs = int(trainer.max_epochs or 1)
        said = ""
        if isinstance(trainer.limit_train_batches, int):  # trainer=debug: not thousands of epochs of two batches
            self.encoder_epochs, self.validate_every = min(self.encoder_epochs, epochs), 1
            said = f"trainer.limit_train_batches={trainer.limit_train_batches}: {epochs} GAN and {self.encoder_epochs} "
            said += "encoder epochs, whatever model.generator_steps and model.encoder_epochs say"
        elif self.wanted_steps:
            epochs = math.ceil(self.wanted_steps * self.n_critic / self.epoch_length())
            said = f"{epochs} epochs make model.generator_steps={self.wanted_steps}, whatever trainer.max_epochs says"
        if said and trainer.is_global_zero:
            print(said, flush=True)
        return epochs

    def epoch_length(self) -> int:
        """Batches of an epoch and process; asked for before Lightning has looked at the data."""
        self.trainer.fit_loop.setup_data()
        return int(self.trainer.num_training_batches)

    @property
    def encoding(self) -> bool:
        """Whether this epoch is the encoder's."""
        return self.current_epoch >= self.gan_epochs

    def on_train_start(self) -> None:
        """A resumed run goes on with the learning rates of its config, not with those that the checkpoint brought."""
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"]

    def on_train_epoch_start(self) -> None:
        """Validate only where there is something to calibrate."""
        useless = self.encoder_epochs > 0 and not self.encoding
        self.trainer.check_val_every_n_epoch = 2**31 if useless else self.validate_every
        self.generator.train(not self.encoding)
        self.critic.train(not self.encoding)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One critic step and, after every n_critic-th, one generator step; or one encoder step."""
        assert self.objective is not None
        image, count = batch["image"], self.trainer.fit_loop.total_batch_idx  # over the whole run
        draws = Draws().manual_seed(derive_seed("gan", self.seed, count, self.global_rank))
        if self.encoding:
            self.lower_encoder_rate(batch_idx)
            terms = self.encoder_step(image, draws)
        else:
            terms = self.critic_step(image, draws)
            if (count + 1) % self.n_critic == 0:
                terms |= self.generator_step(len(image), draws)
        self.note(terms, count + 1, len(image))

    def note(self, terms: dict[str, Tensor], batches: int, images: int) -> None:
        """Log a step's terms, and which batch was the first whose loss is no number."""
        for name, term in terms.items():
            if name in ("critic", "generator", "encoder"):
                bad = ~torch.isfinite(term.detach()) & (self.diverged < 0)
                self.diverged.copy_(torch.where(bad, batches, self.diverged))  # no wait for the GPU
            self.log(
                f"train/{name}",
                term.detach(),
                prog_bar=name in ("wasserstein", "encoder"),
                on_step=False,
                on_epoch=True,
                batch_size=images,
                sync_dist=self.trainer.world_size > 1,
            )
        self.log("generator_steps", self.generator_steps.float(), on_step=False, on_epoch=True, reduce_fx="max")

    def critic_step(self, real: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Descend the critic's loss (eq. 3-5)."""
        assert self.objective is not None
        with torch.no_grad():
            fake = self.generator(self.latents(len(real), draws))  # (B, C, H, W)
        terms = self.objective.critic_loss(self.critic, real, fake, draws)
        length = self.descend(0, terms["loss"], self.critic)
        self.objective.after_critic_step(self.critic)
        terms["critic"] = terms.pop("loss")
        return terms | {"critic_gradient": length}

    def generator_step(self, count: int, draws: Draws) -> dict[str, Tensor]:
        """Descend the generator's loss."""
        assert self.objective is not None
        loss = self.objective.generator_loss(self.critic(self.generator(self.latents(count, draws))).float())
        length = self.descend(1, loss, self.generator)
        self.generator_steps += 1
        if self.ema is not None:
            self.ema.update(self.generator)
        return {"generator": loss, "generator_gradient": length}

    def encoder_step(self, image: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Descend |x - G(E(x))|^2 / N + kappa |f(x) - f(G(E(x)))|^2 / F (Schlegl 2019, izi_f)."""
        generator, critic, encoder = self.networks
        assert encoder is not None
        if self.encoder_images == "generated":
            with torch.no_grad():
                image = generator(self.latents(len(image), draws))
        made = generator(encoder(image))
        residual = (image - made).float().square().mean()
        feature = feature_distance(critic, image, made).mean()
        loss = residual + self.kappa * feature
        length = self.descend(-1, loss, encoder)
        return {"encoder": loss, "residual": residual, "feature": feature, "encoder_gradient": length}

    def lower_encoder_rate(self, batch_idx: int) -> None:
        """Half a cosine, by the place in the encoder's epochs: a resumed run may have other lengths."""
        epochs = self.current_epoch - self.gan_epochs + batch_idx / self.trainer.num_training_batches
        optimizer = self.optimizers()[-1]  # type: ignore[index]
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * (1 + math.cos(math.pi * epochs / self.encoder_epochs)) / 2

    def latents(self, count: int, draws: Draws) -> Tensor:
        """Draw z ~ N(0, I). -> (B, Z)."""
        return to_device(torch.randn(count, self.generator.latent, generator=draws), self.device)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Images of latents that are the same at each call. -> (B, C, H, W)."""
        return self.networks.generator(self.latents(count, Draws().manual_seed(self.seed)))

    def descend(self, which: int, loss: Tensor, network: nn.Module) -> Tensor:
        """One step of one network, by the gradient over all processes; the others stay. -> the gradient's norm."""
        parameters = list(network.parameters())
        gradients = averaged(torch.autograd.grad(loss, parameters))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.get_total_norm(gradients)
        if self.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        optimizer = self.optimizers()[which]  # type: ignore[index]
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def on_train_epoch_end(self) -> None:
        """Stop a run whose losses are no numbers any more; the checkpoints of earlier epochs are kept."""
        self.stop_if_diverged()

    def on_validation_epoch_start(self) -> None:
        """A diverged network is not worth a validation."""
        self.stop_if_diverged()
        super().on_validation_epoch_start()

    def stop_if_diverged(self) -> None:
        """Raise a UserError on all processes if any of them met a loss that is no number."""
        first = int(self.trainer.strategy.reduce(self.diverged, reduce_op="max"))
        if first >= 0:
            rate = f"{'encoder' if self.encoding else 'critic'}_optimizer.lr"
            raise UserError(
                f"a loss is not finite any more since batch {first} (epoch {self.current_epoch + 1}): "
                f"{DIVERGED} ({rate})"
            )

    def configure_optimizers(self) -> Any:
        """One optimiser a network: critic, generator, encoder."""
        networks = [self.critic, self.generator, *([self.encoder] if self.encoder else [])]
        found = []
        for name, make, network in zip(("critic", "generator", "encoder"), self.makers, networks, strict=False):
            try:
                found.append(make(network.parameters()))
            except (ValueError, TypeError) as error:
                raise UserError(f"model.{name}_optimizer: {error}") from error
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where the encoder's epochs begin."""
        checkpoint["gan_epochs"] = self.gan_epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember it, and how many epochs are done."""
        if "gan_epochs" in checkpoint:
            self.resumed = checkpoint["gan_epochs"], checkpoint["epoch"] + 1


def averaged(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Mean of gradients over all processes.

    Not left to DistributedDataParallel, which expects a gradient for every parameter of the module after each
    backward pass: here each pass is one network's.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


def refuse_misfits(
    generator: Generator, critic: Critic, encoder: Encoder | None, scorer: InversionScorer, encoder_epochs: int
) -> None:
    """Raise a ValueError where networks, scorer and lengths contradict each other."""
    for name, network in (("critic", critic), ("encoder", encoder)):
        for size in ("image_size", "channels"):
            mine, theirs = getattr(generator, size), getattr(network, size, None)
            if network is not None and mine != theirs:
                raise ValueError(f"model.{name}.{size}={theirs} does not fit model.generator.{size}={mine}")
    if encoder is not None and encoder.latent != generator.latent:
        raise ValueError(
            f"model.encoder.latent={encoder.latent} does not fit model.generator.latent={generator.latent}"
        )
    if encoder is None and (encoder_epochs or scorer.method != "gradient"):
        raise ValueError(
            f"without an encoder use model.scorer.method=gradient (now {scorer.method}) and model.encoder_epochs=0 "
            f"(now {encoder_epochs})"
        )
    if encoder is not None and not encoder_epochs and scorer.method != "gradient":
        raise ValueError(f"model.encoder_epochs=0 leaves the encoder of model.scorer.method={scorer.method} untrained")

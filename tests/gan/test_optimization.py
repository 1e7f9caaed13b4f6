from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gan.tiny import LATENT, SIZE, make, make_gan

from adlight.detection.optimization import average_over_processes, check_precision
from adlight.gan import objectives
from adlight.gan.objectives import WGAN, WGANGP
from adlight.types import UserError

CASES = {
    "plain": (dict(objective=WGANGP()), {}),
    "clip, drift and average": (dict(objective=WGANGP(drift=0.5), clip=1e-2, ema=0.5), dict(clip=1e-2, kappa=3.0)),
    "bounded weights": (dict(objective=WGAN(clip=0.05, drift=0.5)), {}),
    "encoder of generated images": ({}, dict(encoder_images="generated")),
}


def steps_of_all(rank, world, folder):
    """Each network's own step on this process's share of a batch and of its draws; what came of it, into a file."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.set_num_threads(1)

    def share(whole):
        return whole.chunk(world)[rank]

    def mixture(real, fake, rng):
        e = share(torch.rand(world * len(real), 1, 1, 1, generator=rng))
        return e * real + (1 - e) * fake

    if world > 1:  # one process draws as it always does
        objectives.interpolate = mixture
    found = {}
    for case, (of_gan, of_encoder) in CASES.items():
        sgd = partial(torch.optim.SGD, lr=0.1)
        module, terms = make(make_gan(optimizer=sgd, n_critic=1, **of_gan), optimizer=sgd, **of_encoder), {}
        module.gan.generator.up[-1].weight.data.mul_(30)  # images that differ, as a trained generator's do
        if world > 1:
            module.gan.draw_latents = lambda count, rng: share(torch.randn(world * count, LATENT, generator=rng))
        real = share(torch.rand(8, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(7)))
        loop = SimpleNamespace(total_batch_idx=3)
        trainer = SimpleNamespace(global_rank=0, fit_loop=loop, current_epoch=0, num_training_batches=1, max_epochs=1)
        for stage in (module.gan, module):
            stage.trainer, optimizers = trainer, stage.configure_optimizers()
            stage.optimizers = lambda made=optimizers: made
            stage.log = lambda name, value, into=terms, **_: into.__setitem__(name, float(value))
            stage.training_step({"image": real}, 0)
        found[case] = terms, dict(module.named_parameters())
    torch.save(found, f"{folder}/{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_step_as_one_does_on_the_joined_batch(tmp_path):
    mp.start_processes(steps_of_all, (2, tmp_path), nprocs=2, start_method="forkserver")
    steps_of_all(0, 1, tmp_path)
    alone, *both = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for case in CASES:
        terms, weights = alone[case]
        for name, weight in weights.items():
            torch.testing.assert_close(both[0][case][1][name], weight, atol=1e-5, rtol=1e-5)
            assert torch.equal(both[0][case][1][name], both[1][case][1][name]), (case, name)
        for name, term in terms.items():
            mine, other = (found[case][0][name] for found in both)
            assert (mine + other) / 2 == pytest.approx(term, rel=1e-4, abs=1e-5), (case, name)
            shared = name.endswith("_gradient") or name == "generator_steps"  # taken after the processes' mean
            assert (mine == other) == shared, (case, name)


def test_one_process_has_nothing_to_average():
    gradients = [torch.ones(2), torch.zeros(3)]
    assert average_over_processes(gradients) is gradients


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true", "64-true"])
def test_other_precisions_are_refused(precision):
    with pytest.raises(UserError, match=f"precision={precision}.*32-true or bf16-mixed"):
        check_precision(SimpleNamespace(precision=precision))

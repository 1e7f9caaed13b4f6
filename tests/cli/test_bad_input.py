"""Every foreseeable mistake, through the command line: one clear line on stderr, exit code 2, no traceback."""

import errno
import json
import os
import resource
import shutil

import pytest
import torch
from makers import fake_mvtec, write_mask
from processes import check_refused as check


@pytest.fixture(scope="module")
def place(adlight, tiny_run):
    """The commands' folder, with damaged copies of the data and of the tiny run."""
    folder = adlight.folder
    for name in ("truncated", "small_mask"):
        fake_mvtec(folder / name)
    image = folder / "truncated" / "bottle" / "train" / "good" / "001.png"
    image.write_bytes(image.read_bytes()[:100])
    write_mask(folder / "small_mask" / "bottle" / "ground_truth" / "hole" / "001_mask.png", 5)
    (folder / "empty" / "bottle" / "train" / "good").mkdir(parents=True)
    (folder / "file").write_text("")
    corrupt = folder / "runs" / "corrupt"
    shutil.copytree(tiny_run[0], corrupt)
    for path in (corrupt / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    return folder


TRAIN = {
    "unknown model": ("model=mea", "'mea'", "mae?", "mae_small"),
    "unknown dataset": ("dataset=mnst", "'mnst'", "mnist?", "labelled_folder"),
    "unknown trainer": ("trainer=gpus", "'gpus'", "gpu?", "ddp_4gpu"),
    "unknown logger": ("logger=tensorbord", "tensorboard?"),
    "unknown depth": ("model/depth=e2d5", "model/depth", "'e2d5'", "e2d4"),
    "unknown experiment": ("experiment=mae_mvtek", "mae_mvtec?"),
    "unknown group": ("datset=mvtec", "'datset'", "dataset?"),
    "unknown setting": ("model.mask_ration=0.5", "model", "'mask_ration'", "mask_ratio?"),
    "setting without its group": ("max_epochs=3", "'max_epochs'", "trainer.max_epochs?"),
    "unknown deep setting": ("model.network.encoder_dpth=3", "model.network", "encoder_depth?"),
    "unparsable override": ("dataset.category=a(b", "'dataset.category=a(b'"),
    "missing root": ("dataset.root=nowhere", "nowhere", "train/good", "download=true"),
    "unknown category": ("dataset.category=botle", "'botle'", "bottle?", "bottle, screw"),
    "empty training folder": ("dataset.root=empty", "empty/bottle/train/good"),
    "unreadable image": ("dataset.root=truncated", "truncated/bottle/train/good/001.png", "on_bad_image=skip"),
    "n is not whole": ("model.mask_ratio=0.6", "mask_ratio", "0.6", "2.5", "0.666667"),
    "run folder under a file": ("hydra.run.dir=file/run", "file/run", "hydra.run.dir"),
    "run folder holds a run": ("hydra.run.dir=runs/tiny", "resume=runs/tiny"),
    "resume of nothing": ("resume=runs/nothing", "runs/nothing"),
    "resume of a corrupt checkpoint": ("resume=runs/corrupt", "runs/corrupt/checkpoints/last.ckpt"),
    "bad threshold method": ("calibration.image=quantil:3", "'quantil:3'", "quantile:0.99"),
    "strategy that starts copies": ("trainer.devices=2 trainer.strategy=ddp_spawn trainer.accelerator=cpu", "use ddp"),
    "nodes without Slurm": ("trainer.num_nodes=2 trainer.strategy=ddp trainer.accelerator=cpu", "trainer=slurm"),
    "choice of another model": ("model=pca model/depth=e2d4", "'model/depth'", "no such choice"),
    "group of another model": ("model/objective=wgan", "model/objective"),
    "unknown score": ("model.scorer.score=mae", "'mae'", "msgms"),
    "no normal images named": ("dataset=folder", "dataset.normal_dir"),
    "run folder among images": ("hydra.run.dir=data/bottle/train/good", "hydra.run.dir", "000.png"),
    "setting that nothing reads": ("+max_epochs=3", "'max_epochs'"),
    "overlap without tiles": ("dataset.overlap=0.5", "dataset.overlap", "0.5"),
    "tile larger than all images": ("dataset.tile=100", "tile=100", "32"),
    "setting of a node that is null": ("dataset.augmentation.crop=0.5", "dataset.augmentation.crop", "null"),
    "list for a node": ("dataset.augmentation=[]", "dataset.augmentation"),
    "no validation interval": ("+trainer.val_check_interval=0", "trainer.val_check_interval", "got 0"),
    "no time": ("+trainer.max_time=00:00:00:00", "trainer.max_time"),
    "lengths that contradict": ("+trainer.min_epochs=9", "trainer.min_epochs=9", "trainer.max_epochs=2"),
    "target of Python's own": ("model._target_=os.system", "setting in model"),
    "nodes that are not made": ("+model._recursive_=false", "model._recursive_"),
    "a value without a name": ("=5", "'=5'"),
    "a value that Hydra refuses": ("hydra.mode=MULTIRUNS", "hydra.mode", "MULTIRUNS"),
    "tags that are no list": ("logger=wandb logger.wandb.tags=a", "logger.wandb.tags"),
    "callback of what is not logged": (
        "+callbacks.es={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val/loss}",
        "callbacks: ",
        "val/loss",
    ),
    "smoothing wider than a map": ("model.scorer.smoothing=50", "smoothing", "50", "32 x 32"),
}


@pytest.mark.parametrize("case", TRAIN.values(), ids=TRAIN.keys())
def test_train_refuses(adlight, place, case):
    word, *said = case
    words = [word] if word.startswith("resume=") else [*adlight.quick, *word.split()]
    check(adlight("train", *words), *said)


GAN = {
    "unknown digit": ("dataset.normal=12", "12"),
    "batch larger than the set": ("dataset.batch_size=500", "batch_size=500", "18"),
    "generator that is never trained": ("model.gan.n_critic=999", "n_critic=999"),
    "unknown objective": ("model/gan/objective=wgn", "model/gan/objective", "'wgn'", "wgan?"),
    "unknown method": ("model.scorer.method=encodr", "'encodr'", "encoder?"),
    "unknown score of a GAN": ("model.scorer.score=sum", "'sum'", "mixture, thesis"),
    "untrained encoder": ("model.encoder_epochs=0", "method=encoder", "encoder_epochs"),
    "missing encoder": ("model.encoder=null", "method=encoder", "encoder"),
    "pretrained GAN of no run": ("model.pretrained_gan=nowhere", "nowhere/checkpoints/last.ckpt"),
    "pretrained GAN of another model": ("model.pretrained_gan=runs/tiny", "runs/tiny", "critic"),
    "clipping by the trainer": ("trainer.gradient_clip_val=1", "trainer: ", "gradient_clip_val"),
}


@pytest.mark.parametrize("case", GAN.values(), ids=GAN.keys())
def test_a_gan_refuses(adlight, place, case):
    words, *said = case
    check(adlight("train", *adlight.gan, *words.split(), "hydra.run.dir=runs/refused_gan"), *said)
    assert not (place / "runs" / "refused_gan" / "checkpoints").exists()


@pytest.fixture(scope="module")
def source_run(adlight, place):
    """The settings of a finished GAN, the run runs/source."""
    words = [*adlight.gan, "trainer.max_epochs=1", "model.encoder_epochs=1", "dataset.train_limit=8"]
    assert adlight("train", *words, "hydra.run.dir=runs/source").code == 0
    return words


def test_pretrained_gan_of_other_images(adlight, source_run):
    for word, said in (("seed=1", "dataset.seed"), ("dataset.train_limit=9", "dataset.train_limit")):
        check(adlight("train", *source_run, "model.pretrained_gan=runs/source", word), said, word.partition("=")[2])


def test_pretrained_gan_of_another_width(adlight, source_run):
    for word, name in (
        ("model.gan.generator.ngf=8", "generator"),
        ("model.gan.critic.ndf=8", "critic"),
        ("model.gan.ema=0", "ema"),
    ):
        check(adlight("train", *source_run, "model.pretrained_gan=runs/source", word), "runs/source", name)


EVALUATE = {
    "no run named": ("", "run="),
    "no such run": ("run=runs/nothing", "runs/nothing"),
    "no such checkpoint": ("run=runs/tiny ckpt=nix.ckpt", "nix.ckpt", "best.ckpt, last.ckpt"),
    "unknown setting": ("run=runs/tiny model.scorer.reduc=max", "model.scorer", "reduce?"),
    "unknown setting of another data set": ("run=runs/tiny dataset=mvtec dataset.catgory=bottle", "category?"),
    "unknown callback": ("run=runs/tiny ~callbacks.panel", "panels?"),
    "unknown top setting": ("run=runs/tiny calibraton.image=0.5", "calibration?"),
    "unknown value": ("run=runs/tiny model.scorer.reduce=maximum", "'maximum'", "mean, max, topk"),
    "unknown group": ("run=runs/tiny trainer=cpus", "'cpus'", "cpu?"),
    "bad threshold method": ("run=runs/tiny calibration.image=quantil:3", "'quantil:3'"),
    "folder of images": ("run=runs/tiny hydra.run.dir=data/bottle/test/good", "hydra.run.dir", "000.png"),
    "corrupt checkpoint": ("run=runs/corrupt", "runs/corrupt/checkpoints/best.ckpt"),
    "another architecture": (
        "run=runs/tiny model.network.encoder_width=64",
        "decoder_embed.weight",
        "(32, 32)",
        "(32, 64)",
    ),
    "other layers": ("run=runs/tiny model.network.encoder_depth=3", "encoder_blocks.1", "(128,)"),
}


@pytest.mark.parametrize("case", EVALUATE.values(), ids=EVALUATE.keys())
def test_evaluate_refuses(adlight, place, case):
    words, *said = case
    check(adlight("evaluate", *words.split()), *said)


def test_a_mistake_leaves_no_checkpoint_behind(adlight, place):
    check(adlight("train", *adlight.quick, "dataset.image_size=33", "hydra.run.dir=runs/refused"))
    assert not (place / "runs" / "refused" / "checkpoints").exists()
    assert adlight("train", *adlight.quick, "hydra.run.dir=runs/refused", "trainer.max_epochs=1").code == 0


def test_what_environment_and_own_configs_do_wrong(adlight, place, monkeypatch):
    (place / "own" / "model").mkdir(parents=True)
    (place / "own" / "model" / "mine.yaml").write_text("a: [\n")
    check(adlight("train", "--config-dir", "own", *adlight.quick, "model=mine"), "own/model/mine.yaml", "line 2")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "x")
    check(adlight("train", *adlight.quick), "SLURM_STEP_NUM_TASKS", "'x'")


def test_resume_with_another_architecture(adlight, place):
    check(
        adlight("train", "resume=runs/tiny", "model.network.encoder_width=64", "trainer.max_epochs=3"),
        "runs/tiny/checkpoints/last.ckpt",
    )
    assert "encoder_width: 32" in (place / "runs" / "tiny" / ".hydra" / "config.yaml").read_text()


def test_resume_of_many_runs(adlight, place):
    check(adlight("train", "-m", "resume=auto", "seed=1,2"), "resume", "-m")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(adlight, place):
    check(adlight("train", *adlight.quick, "trainer=gpu"), "trainer: ")


def test_lpips_weights_are_missing(adlight, place, monkeypatch):
    def unreachable(*args, **settings):
        raise OSError("no network")

    monkeypatch.setattr("lpips.LPIPS", unreachable)
    check(adlight("train", *adlight.quick, "model.objective.lpips=1"), "alexnet-owt-7be5be79.pth", "lpips=0")


def test_unreadable_images_are_skipped_and_counted(adlight, place):
    words = [*adlight.quick, "dataset.root=truncated", "dataset.on_bad_image=skip", "trainer.max_epochs=1"]
    outcome = adlight("train", *words, "hydra.run.dir=runs/skipped")
    assert outcome.code == 0
    assert "truncated/bottle/train/good/001.png" in outcome.out
    (skipped,) = json.loads((place / "runs" / "skipped" / "metrics.json").read_text())["skipped"]
    assert "truncated/bottle/train/good/001.png" in skipped


BEFORE = {
    "mask of another size": ("dataset.root=small_mask", "hole/001_mask.png", "5x5", "32x32"),
    "missing folder of masks": ("dataset.mask_dir=masks", "mask_dir", "truncated/bottle/masks", "holds ground_truth"),
    "too few to hold one out": ("dataset.normal_test_fraction=0.6", "1 normal", "add normal images"),
    "nothing to test": ("dataset.normal_test_fraction=0", "nothing to test"),
}


@pytest.mark.parametrize("case", BEFORE.values(), ids=BEFORE.keys())
def test_the_test_split_is_checked_before_the_training(adlight, place, case):
    word, *said = case
    words = [*adlight.quick, word, "hydra.run.dir=runs/checked"]
    if "root=" not in word:
        folders = ["abnormal_dir=test/hole"] if "mask" in word else []
        words += [f"dataset.{folder}" for folder in ("root=truncated/bottle", "normal_dir=test/good", *folders)]
        words = [*(one for one in words if one != "dataset.root=data"), "dataset=folder"]
    check(adlight("train", *words), *said)
    assert not (place / "runs" / "checked" / "checkpoints").exists()


def test_what_only_decoding_shows_keeps_the_training(adlight, place):
    image = place / "small_mask" / "bottle" / "test" / "hole" / "002.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:500] + bytes(100) + whole[600:])
    write_mask(place / "small_mask" / "bottle" / "ground_truth" / "hole" / "001_mask.png")
    outcome = adlight("train", *adlight.quick, "dataset.root=small_mask", "hydra.run.dir=runs/small_mask")
    run = place / "runs" / "small_mask"
    check(outcome, "small_mask/bottle/test/hole/002.png", f"adlight train resume={run}")
    trained = (run / "checkpoints" / "last.ckpt").read_bytes()
    image.write_bytes(whole)
    assert adlight("train", f"resume={run}").code == 0
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == trained
    assert (run / "metrics.json").exists()


def test_what_is_left_out_and_how_the_test_was_cut_stand_below_the_table(adlight, place):
    (place / "small_mask" / "bottle" / "train" / "good" / "x.webp").write_text("")
    write_mask(place / "small_mask" / "bottle" / "ground_truth" / "hole" / "001_mask.png")
    words = ["dataset.root=small_mask", "dataset.test_limit=4", "dataset.eval_batch_size=3"]
    words += ["trainer.limit_test_batches=1", "trainer.max_epochs=1", "hydra.run.dir=runs/cut"]
    outcome = adlight("train", *adlight.quick, *words)
    assert outcome.code == 0, outcome.err
    told = [line for line in outcome.out.splitlines() if line.startswith("data: ")]
    assert "1 .webp" in told[0] and told[0] == told[-1] and len(told) == 3  # at the beginning, and below the table
    cut = "3 of 18 test images were used (test_limit, limit_test_batches)"
    assert cut in told[1] and cut in json.loads((place / "runs" / "cut" / "metrics.json").read_text())["protocol"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_for_the_run_folder(adlight, place):
    (place / "closed").mkdir(mode=0o500)
    check(adlight("train", *adlight.quick, "hydra.run.dir=closed/run"), "closed/run", os.strerror(errno.EACCES))


def test_no_space_leaves_the_earlier_checkpoint_whole(adlight, place, tiny_run):
    run = place / "runs" / "no_space"
    shutil.copytree(tiny_run[0], run)
    before = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    words = [f"resume={run}", "trainer.max_epochs=3"]
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, most))
    try:
        full = adlight("train", *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert full.code == 2, full.err
    assert os.strerror(errno.EFBIG) in full.err and f"adlight train resume={run}" in full.err
    assert "Traceback" not in full.err and not list(run.rglob("*.part"))
    for path, content in before.items():
        assert path.read_bytes() == content
        torch.load(path, weights_only=True)
    assert adlight("train", *words).code == 0  # with space again it goes on
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2

"""Every setting of every node: what does not fit is one line with its full name, before anything is built or read."""

import functools
import math
from copy import deepcopy

import makers
import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer

from adlight.runs.checks import check_node, check_settings
from adlight.runs.config import CONF, instantiate_node
from adlight.runs.overrides import compose_config
from adlight.runs.programs import check_values
from adlight.runs.schema import is_optimizer
from adlight.settings import is_checked
from adlight.types import UserError


@functools.cache
def composed(*words):
    """The config of a training, of mae_small unless the words name another model."""
    return makers.composed(*words if "model=" in " ".join(words) else ("model=mae_small", *words))


def change(config, key, value):
    """A copy with another value; a key in ~ is deleted, one that is new is added."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    parent, _, name = key.lstrip("~").rpartition(".")
    if key.startswith("~"):
        del OmegaConf.select(config, parent)[name]
    else:
        OmegaConf.update(config, key, value, merge=False)
    return config


MNIST, GAN = ("dataset=mnist",), ("model=gan",)
FOLDER = "dataset=folder", "dataset.normal_dir=good"
FEATURES, BANK = (("model=" + name,) for name in ("feature_mae", "patchcore"))
BAD = [  # settings of a node, values, and in which config
    ("seed", [-1, 1e99, 1.5, None, True, "x", 2**32], ()),
    ("image_size", [0, "x", [1]], ()),
    ("ckpt", [""], ()),
    ("resume_sweep", ["yes", 1], ()),
    ("dataset.batch_size", [0, 1.5, "x", math.nan, None, True, [4]], ()),
    ("dataset.val_fraction", [0, 1, math.nan, "x", -0.1], ()),
    ("dataset.image_size", [0, "x", [1, 2, 3], 2.5], ()),
    ("dataset.keep_shape", ["no", 1], ()),
    ("dataset.root", ["", "  ", None, 3], ()),
    ("dataset.category", ["", []], ()),
    ("dataset.source", [None, "mvtec"], ()),
    ("dataset.augmentation", ["yes", 3], ()),
    ("dataset.normal", [None, True, ""], MNIST),
    ("model.mask_ratio", [0, 1, 2, "x", math.nan], ()),
    ("model.network", [None, "vit", 3], ()),
    ("model.scorer.topk", [0, 1.5], ()),
    ("model.optimizer", ["adam", None], ()),
    ("model.optimizer.lr", [-1, 0, "x", math.nan, math.inf, True, [1]], ()),
    ("model.optimizer.betas", [[0.9], 0.9, "x"], ()),
    ("model.optimizer.weight_decay", [-1], ()),
    ("model.optimizer.maximize", [True], ("model=mae",)),
    ("model.optimizer.muon_lr", [-1], FEATURES),
    ("model.members", [[], "neighbour"], FEATURES),
    ("model.backbone.layers", [[], "layer2"], FEATURES),
    ("model.gan.generator_optimizer.betas", [[0.5]], GAN),
    ("model.scorer.weights.residual", ["x", math.nan], GAN),
    ("trainer.max_epochs", [0, -1, 0.5, None, "x"], ()),
    ("trainer.devices", [0, -2, "x", [], 1.5], ()),
    ("trainer.num_nodes", [0], ()),
    ("trainer.accelerator", ["gpus", 3], ()),
    ("trainer.strategy", ["dpp"], ()),
    ("trainer.precision", ["64-true", "bf16-true", 64], ()),
    ("trainer.accumulate_grad_batches", [-3, 0, 1.5, None], ()),
    ("trainer.gradient_clip_val", [-1, "x", math.nan], ()),
    ("trainer.check_val_every_n_epoch", [0, -1], ()),
    ("trainer.limit_train_batches", [-1, 0, 1.5, "x"], ()),
    ("trainer.limit_val_batches", [0, 0.0, -2], ()),
    ("trainer.limit_test_batches", [0, -1, 2.5], ()),
    ("trainer.num_sanity_val_steps", [-2], ()),
    ("trainer.log_every_n_steps", [-1], ()),
    ("trainer.deterministic", ["maybe"], ()),
    ("trainer.enable_progress_bar", ["no"], ()),
    ("trainer.fast_dev_run", [True], ()),
    ("trainer.max_steps", [1, -7, 0.5], ()),
    ("trainer.overfit_batches", [1, 0.5], ()),
    ("trainer.logger", [True], ()),
    ("trainer.callbacks", [["a"]], ()),
    ("partial_settings", ["x", 3, [1]], ()),
    ("requested_frame", ["x", 3], ()),
    ("trainer.benchmark", ["x"], ()),
    ("calibration.image", ["quantil:3", "quantile:2", True, [1]], ()),
    ("callbacks.panels", [5, "x"], ()),
    ("callbacks.panels.folder", ["", None], ()),
    ("logger.csv.path", ["", 3], ()),
    ("logger.tensorboard.version", [[1]], ("logger=tensorboard",)),
    ("checkpoint", [5], ()),
]


@pytest.mark.parametrize(("key", "values", "words"), BAD, ids=[case[0] for case in BAD])
def test_a_bad_value_is_one_line_with_its_full_name(key, values, words):
    for value in values:
        with pytest.raises(UserError) as caught:
            check_settings(change(composed(*words), key, value))
        line = str(caught.value)
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        last = value[-1] if isinstance(value, list) and value else shown  # perhaps the element that is at fault
        assert key in line and "\n" not in line and (shown in line or str(last) in line), line


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("~dataset.root", "dataset.root must be given"),
        ("~model.network", "model.network must be given"),
        ("dataset.rot", "did you mean root?"),
        ("model.optimizer.lrr", "unknown setting in model.optimizer 'lrr'"),
        ("model.optimizer.betas", "model.optimizer.betas.1"),
        ("trainer.device", "did you mean devices?"),
        ("callbacks.samples.evry", "did you mean every?"),
    ],
)
def test_what_is_missing_or_unknown(key, said):
    with pytest.raises(UserError) as caught:
        check_settings(change(composed(), key, [0.9, 1.5]))
    assert said in str(caught.value)


def test_a_value_that_comes_from_another_setting_is_named_by_that():
    with pytest.raises(UserError, match=r"^dataset\.image_size"):
        check_settings(change(composed("model=gan"), "dataset.image_size", 33))
    with pytest.raises(UserError, match=r"^model\.mask_ratio must"):
        check_node(change(composed(), "model.mask_ratio", 2).model.scorer)


def test_what_an_optimizer_alone_knows_is_said_before_the_data_is_read():
    bad = change(
        change(composed("model=mae"), "model.optimizer._target_", "torch.optim.SGD"), "~model.optimizer.betas", None
    )
    with pytest.raises(UserError, match=r"model\.optimizer: .*[Nn]esterov"):
        check_settings(change(bad, "model.optimizer.nesterov", True))


WRONG = [
    ("calibration", "builtins.dict", "Calibration"),
    ("checkpoint", "pytorch_lightning.callbacks.ModelCheckpoint", "BestAndLast"),
    ("callbacks.panels", "torch.nn.Identity", "Callback"),
    ("callbacks.panels", "trouble.make_text", "Callback"),
]


@pytest.mark.parametrize(("node", "target", "needed"), WRONG)
def test_a_target_of_another_kind(node, target, needed):
    config = change(composed(), f"{node}._target_", target)
    with pytest.raises(UserError) as caught:
        instantiate_node(OmegaConf.select(config, node))
    assert all(word in str(caught.value) for word in (f"{node}._target_={target}", needed))


@pytest.mark.parametrize("node", ["model", "dataset.source", "model.optimizer"])
@pytest.mark.parametrize(
    "name", ["nothing.at.all", "adlight.mae.module.Gone", "Nothing", "", None, ["a"], "adlight.mae"]
)
def test_a_target_that_there_is_not(name, node):
    with pytest.raises(UserError, match=rf"^{node}\._target_="):
        check_settings(change(composed(), f"{node}._target_", name))


@pytest.mark.parametrize(
    ("node", "target", "needed", "words"),
    [
        ("dataset.source", "torch.nn.Linear", "Source", ()),
        ("model.optimizer", "torch.nn.Linear", "Optimizer", ()),
        ("model.network", "adlight.gan.networks.Critic", "MaskedAutoencoder", ()),
        ("model.gan.critic_optimizer", "torch.nn.Linear", "Optimizer", GAN),
        ("model.predictors.patchcore", "torch.nn.Linear", "Predictor", BANK),
    ],
)
def test_what_is_called_later_must_make_the_right_kind_too(node, target, needed, words):
    config = composed(*words)
    with pytest.raises(UserError, match=rf"^{node}\._target_={target} .*{needed}"):
        check_settings(change(config, f"{node}._target_", target))
    with pytest.raises(UserError, match=rf"^{node}\._partial_ must be true"):
        check_settings(change(config, f"{node}._partial_", False))


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_cannot_train_a_network(name):
    bare = change(change(composed("model=mae"), "~model.optimizer.betas", None), "~model.optimizer.weight_decay", None)
    with pytest.raises(UserError, match=rf"^model\.optimizer: .*{name}"):
        check_settings(change(bare, "model.optimizer._target_", f"torch.optim.{name}"))


COMMANDS = {
    "predict": {
        **{"batch_size": [0, "x", 1.5], "on_bad_image": ["ignore"], "device": ["", None], "run": [""], "ckpt": [""]},
        **{"engine": ["spark"], "actors": [0, 1.5], "part_size": [0, None], "ray_address": [""]},
    },
    "report": {
        **{"detailed": [-1, 1.5], "pictures": ["many"], "out": ["", 3], "runs": [[], 5], "title": [[1]]},
        **{"reference": [{"a": 1}], "reference_column": [2], "tolerance": [-1, math.nan, "x"]},
    },
    "evaluate": {"run": ["", None, 3, ["a", "b"]], "ckpt": ["", 3, ["best"]]},
    "doctor": {"seed": [-1, "x"], "data_root": ["", None]},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_settings_of_other_commands(command):
    given = {"predict": ["run=x", "images=y"], "report": ["runs=x"], "evaluate": ["run=x"], "doctor": []}
    config = compose_config(command, given[command])
    check_values(config)
    for name, value in ((name, value) for name, values in COMMANDS[command].items() for value in values):
        with pytest.raises(UserError, match=rf"^(unknown )?(setting in )?{name}\b"):
            check_values(change(config, name, value))


MODELS = sorted(path.stem for path in (CONF / "model").glob("[!_]*.yaml"))
CONFIGS = {
    **{name: (f"model={name}", "dataset=mvtec", "dataset.keep_shape=false") for name in MODELS},
    **{name: (f"dataset={name}",) for name in ("synthetic", "mnist", "cifar10")},
    "folder": FOLDER,
    "labelled_folder": ("dataset=labelled_folder", "dataset.normal=x"),
    **{name: ("model=gan", f"model/gan/objective={name}") for name in ("wgan", "lsgan", "dcgan")},
}
TEXTS = {  # settings that a text of any kind fits, as far as their type goes
    *("root", "category", "normal", "normal_dir", "abnormal_dir", "mask_dir", "test_normal_dir"),
    *("folder", "path", "pretraining", "cache", "name", "weights", "pretrained_gan"),
    *("save_dir", "version", "default_root_dir", "cache_dir", "roi"),
}
LISTS = {"category", "layers", "members"}  # of texts
UNBOUNDED = {"image", "pixel"}  # thresholds


def nodes(value):
    if isinstance(value, DictConfig):
        if "_target_" in value:
            yield value
        for key in value:
            yield from nodes(value._get_node(key))


def test_nonsense_is_refused_by_every_argument_of_every_constructor():
    """So that none is without annotations."""
    groups, seen = ("dataset", "model", "calibration", "callbacks", "logger", "checkpoint", "trainer"), set()
    for words in CONFIGS.values():
        config = composed(*words).copy()
        OmegaConf.set_struct(config, False)
        for node in [node for name in groups for node in nodes(config[name])]:
            key, target = str(node._get_full_key(None)), get_object(node["_target_"])
            arguments = [str(name) for name in node if not str(name).startswith("_")]
            assert is_checked(target) or not arguments or is_optimizer(target) or target is Trainer, key
            for name in arguments:
                before = deepcopy(node._get_node(name))
                for value, fits in (("nonsense", TEXTS), (math.nan, ()), (-1e9, UNBOUNDED), (["nonsense"], LISTS)):
                    if name not in fits and (target, name) not in seen:
                        node[name] = value
                        with pytest.raises(UserError, match=rf"\b{key}\.{name}\b"):
                            check_node(node, supplied=("last",))
                node._set_item_impl(name, before)
                seen.add((target, name))
    assert len(seen) > 200

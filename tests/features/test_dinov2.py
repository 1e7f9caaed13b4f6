"""The large setting, with random weights, at a small size and on the small network of its family."""

import json

from test_configs import composed

EXPERIMENT = "experiment=feature_mae_dinov2"
SMALL = [
    *("model.backbone.name=vit_small_patch14_reg4_dinov2", "dataset.category=bottle"),
    *("dataset.root=data", "dataset.resize=112", "dataset.image_size=98", "dataset.batch_size=6", "trainer=cpu"),
    *("model.backbone.weights=random", "model.backbone.min_size=1", "model.cache=null", "model.clusters=1"),
    *(f"model.predictors.neighbour.{key}" for key in ("width=32", "heads=2", "depth=2")),
    *(
        "trainer.max_epochs=1",
        "trainer.check_val_every_n_epoch=1",
        "model.training_residuals=4",
        "dataset.val_defects=1",
    ),
]


def test_the_setting():
    config = composed(EXPERIMENT, "dataset.root=x")
    assert (config.dataset.resize, config.dataset.image_size, config.dataset.batch_size) == (448, 392, 16)
    assert config.dataset.category == "all" and config.dataset.augmentation is None
    assert config.model.backbone.name == "vit_base_patch14_reg4_dinov2" and config.model.members == ["neighbour"]
    normals = 3629 - 363  # of 15 categories, a tenth held out
    assert -(-normals // config.dataset.batch_size) * config.trainer.max_epochs >= 10_000


def test_it_runs(adlight):
    run = adlight.train(EXPERIMENT, *SMALL)
    found = json.loads((run / "metrics.json").read_text())
    assert 0 <= found["auroc"] <= 1 and found["epochs"] == 1
    assert (run / "panels" / "bottle.png").is_file()

"""Tables in which some models are trained on each category apart, and others on all of them at once."""

from makers import fake_mvtec
from readers import table

from hydra_plugins.adlight_columns import arrange


def test_each_model_has_the_categories_that_are_its(tmp_path):
    fake_mvtec(tmp_path, ("bottle", "screw"), train=1, test=1)
    jobs = [[f"model={model}", "seed=1", f"dataset.category={c}"] for model in ("dagan", "mae") for c in ("b", "a")]
    apart = [f"dataset.category={c}" for c in ("b", "a")]
    found = arrange(jobs, ["dagan", "mkd"], "nowhere")
    assert found == [*(["model=dagan", "seed=1", c] for c in apart), ["model=mae", "seed=1", "dataset.category=[b,a]"]]
    every = arrange([["model=mkd", "dataset.category=all"], ["model=mae", "dataset.category=all"]], ["mkd"], tmp_path)
    assert [job[-1].partition("=")[2] for job in every] == ["bottle", "screw", "all"]


def test_the_article_s_table_is_one_sweep(adlight):
    """Its report sets ours beside the article's columns: MKD and U-Net a model per category, the MAE one for all."""
    words = [*("dataset.root=data", "image_size=32", "dataset.batch_size=4", "trainer=cpu", "trainer.max_epochs=1")]
    words += ["~callbacks.panels", "~callbacks.gallery", "model=autoencoder,mae_small,pca", "model.network.depth=1"]
    words += ["model.network.width=4", "model.network.components=3", "hydra.sweep.dir=runs/article_table_1"]
    outcome = adlight("train", "-m", "experiment=article_table_1", *words)
    assert outcome.code == 0, outcome.err
    rows = table(adlight.folder / "runs" / "article_table_1" / "results.csv")
    assert [row["status"] for row in rows] == ["finished"] * 4
    outcome = adlight("report", "runs=runs/article_table_1", "out=article_table_1_report")
    assert outcome.code == 0, outcome.err
    found = {
        (row["model"], row["category"]): row for row in table(adlight.folder / "article_table_1_report" / "results.csv")
    }
    published = {key: row["reference_auroc"] for key, row in found.items() if key[1] in ("bottle", "screw")}
    assert published["autoencoder", "bottle"] == "0.863" and published["autoencoder", "screw"] == "1.0"
    assert published["mae_small", "bottle"] == "0.993" and published["pca", "bottle"] == ""
    assert float(found["mae_small", "mean of 2"]["reference_auroc"]) == (0.993 + 0.804) / 2

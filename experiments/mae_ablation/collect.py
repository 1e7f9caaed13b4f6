"""The cells of an ablation: `python experiments/mae_ablation/collect.py <table.csv> <sweep>`.

Writes one row per cell; `paper` is table 2 of the article. The heat maps are `adlight.report`'s.
"""

import sys
from pathlib import Path

from adlight.reports.collect import collect
from adlight.reports.reference import CELL_KEYS, compare

METRICS = ["auroc", "ap", "f1_max", "f1_calibrated", "pixel_auroc", "aupro"]
RENAMED = {"reference_auroc": "paper", "config.model.network.encoder": "encoder", "config.seed": "seed"}
RENAMED |= {key: key.rpartition(".")[2] for key in CELL_KEYS}
COLUMNS = ["mask_ratio", "encoder_depth", "decoder_depth", "encoder", "auroc", "paper", "auroc_lower", "auroc_upper"]


def main():
    table, *places = sys.argv[1:]
    found = compare(collect(places), [str(Path(__file__).with_name("expected.csv"))], None).headlines
    rows = found[found["status"] == "finished"].rename(columns=RENAMED)
    rows = rows.sort_values("paper", ascending=False).sort_values(["encoder", "mask_ratio"], kind="stable")
    rounded = [*METRICS, "auroc_lower", "auroc_upper"]
    rows[rounded] = rows[rounded].map("{:.4f}".format)
    rows["seconds"] = rows["seconds"].round().astype(int)
    columns = [*COLUMNS, *METRICS[1:], "seed", "epochs", "seconds"]
    rows[columns].to_csv(table, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()

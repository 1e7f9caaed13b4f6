"""Table from a sweep's report: `python experiments/article_table_1/collect.py <report>/results.csv`.

Writes measured.csv beside this file, one row per run and category, the article's AUROC beside ours, and prints the
image AUROC of each model as Markdown: by category, its mean, and the article's.
"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
COLUMNS = ["name", "model", "category", "val/auroc", "auroc", "auroc_lower", "auroc_upper", "reference_auroc", "ap"]
COLUMNS += ["f1_max", "f1_calibrated", "trivial_f1", "pixel_auroc", "aupro", "epochs", "seconds", "commit"]


def main():
    table = pd.read_csv(sys.argv[1])
    rows = table[table["level"] == "category"]
    rows[COLUMNS].to_csv(HERE / "measured.csv", index=False, lineterminator="\n")
    ours = rows.pivot(index="model", columns="category", values="auroc").assign(mean=lambda of: of.mean(axis=1))
    paper = rows.pivot(index="model", columns="category", values="reference_auroc").mean(axis=1, skipna=False)
    chosen = rows.groupby("model")["val/auroc"].mean()
    print(f"| model | val/auroc | {' | '.join(ours)} | the article's mean |\n|---|--:|{'--:|' * (ours.shape[1] + 1)}")
    for model in rows["model"].unique():
        published = "" if pd.isna(paper[model]) else f"{paper[model]:.3f}"
        values = " | ".join(f"{value:.3f}" for value in (chosen[model], *ours.loc[model]))
        print(f"| `{model}` | {values} | {published} |")


if __name__ == "__main__":
    main()

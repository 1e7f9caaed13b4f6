"""Measure speed and memory on this machine: `python experiments/speed/bench.py [loop step views data ...]`.

Each row runs in a process of its own. All rows: measured.csv and the table in README.md are written anew; some rows:
only theirs are. Nothing here is a test: the numbers depend on the machine, and on what else runs on it.
"""

import argparse
import csv
import importlib
import os
import platform
import re
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROWS = {
    "loop": ("loop", "measure"),
    "step": ("model", "measure_step"),
    "views": ("model", "measure_views"),
    "data": ("data", "measure"),
    "features": ("features", "measure"),
    "start": ("start", "measure"),
    "pixel": ("pixels", "measure"),
    "gan": ("adversarial", "measure"),
    "inference": ("inference", "measure"),
}
COLUMNS = ["row", "what", "value", "unit", "aim", "spread"]


def measure(name: str) -> list[dict[str, Any]]:
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    module, function = ROWS[name]
    return getattr(importlib.import_module(module), function)()


def write(fresh: dict[str, list[dict[str, Any]]]) -> None:
    """Put fresh rows in place of the old ones of their name, in the table and in the README."""
    path = HERE / "measured.csv"
    old = list(csv.DictReader(path.open())) if path.exists() else []
    rows = [line for name in ROWS for line in fresh.get(name, [line for line in old if line["row"] == name])]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|--:|---|---|---|"]
    shown = [line for line in rows if line["row"] != "inference"]
    lines += ["| " + " | ".join(str(line[column]) for column in COLUMNS) + " |" for line in shown]
    lines += ["", *inference_table([line for line in rows if line["row"] == "inference"])]
    table = "\n".join(["<!-- measured -->", "", about(list(fresh)), "", *lines, "", "<!-- /measured -->"])
    readme = HERE / "README.md"
    pattern = re.compile("<!-- measured -->.*<!-- /measured -->", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: table, readme.read_text()))


def inference_table(rows: list[dict[str, Any]]) -> list[str]:
    """One line per model and engine; latencies are of batches of 1, images/s of batches of 16."""
    values = {line["what"]: line for line in rows}
    threads = sorted({int(found[1]) for what in values if (found := re.search(r"(\d+) threads?,", what))})
    head = [f"{title}, {n} thread{'s' * (n > 1)}" for title in ("p50, p99 in ms", "images/s") for n in threads]
    lines = ["| inference: model, engine | " + " | ".join([*head, "AUROC"]) + " |", "|---|" + "--:|" * (len(head) + 1)]
    for name in (what.removesuffix(": AUROC") for what in values if what.endswith(": AUROC")):
        each = [f"{name}, {n} thread{'s' * (n > 1)}, batch" for n in threads]
        latency = [values[f"{prefix} 1: latency, p50"] for prefix in each]
        cells = [f"{line['value']}, {line['spread'].removeprefix('p99 ')}" for line in latency]
        cells += [values[f"{prefix} 16"]["value"] for prefix in each]
        lines.append("| " + " | ".join([name, *cells, values[f"{name}: AUROC"]["value"]]) + " |")
    return lines


def about(names: list[str]) -> str:
    """Machine, versions, commit, date, command."""
    import torch

    from adlight.runs.provenance import git_commit

    try:
        text = Path("/proc/cpuinfo").read_text()
        cpu = re.search(r"model name\s*:\s*(.*)", text)[1]  # type: ignore[index]
        extras = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text)]
        cpu += f" ({', '.join(extras)})"
    except (OSError, TypeError):
        cpu = platform.processor()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    command = " ".join(["python experiments/speed/bench.py", *(names if len(names) < len(ROWS) else [])])
    date, load = time.strftime("%Y-%m-%d %H:%M"), os.getloadavg()[2]
    return (
        f"Machine: {cpu}, {os.cpu_count()} cores, {gpu}; load {load:.1f} (mean of 15 minutes); "
        f"torch {torch.__version__}, Python {platform.python_version()}; commit {git_commit()}; {date}; "
        f"last command: `{command}`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"which rows to measure: {', '.join(ROWS)}; all")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    fresh = {}
    for name in options.rows or ROWS:
        start = time.perf_counter()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            fresh[name] = pool.submit(measure, name).result()
        for line in fresh[name]:
            print(
                f"{line['row']:6} {line['what']:95} {line['value']:>9} {line['unit']:9} {line['aim']:9}", line["spread"]
            )
        print(f"       ({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    if not options.dry:
        write(fresh)


if __name__ == "__main__":
    main()

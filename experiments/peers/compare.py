"""Do the same work by adlight and by anomalib in turn (A B A B ...): `make peers`, or

    python experiments/peers/compare.py [--threads 1] [--repeats 3] [--files 1000] [--ours] [row ...]

Rows are those of ours.py and theirs.py. Each measurement is a process of its own. What is measured takes the place of
the old lines of its row and number of threads in measured.csv and in README.md.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON = {"adlight": Path(sys.executable), "anomalib": ROOT / ".venv-peers/bin/python"}
SCRIPT = {"adlight": HERE / "ours.py", "anomalib": HERE / "theirs.py"}
WHOLE = (
    "help",
    "fit and test",
    "fit and test, pictures",
    "predict",
)  # measured from outside, the interpreter's start too
ROWS = ("install", *WHOLE, "data 256", "data 256 augmented", "data 1024", "pixel metrics")
ROWS += ("PatchCore", "PaDiM", "EfficientAD", "Dinomaly", "score")
OURS = dict.fromkeys(
    ("PaDiM", "EfficientAD", "Dinomaly"), "PatchCore"
)  # what stands beside methods that we do not have
COLUMNS = ["row", "threads", "figure", "adlight", "anomalib", "ratio", "spread", "times"]
NO_RATIO = ("AUROC", "AP", "best F1", "AUPRO")  # values, not costs


def installed() -> dict[str, dict[str, float]]:
    """MB of each environment, without what torch brings (CUDA's libraries), which both need."""
    found = {}
    for side, python in PYTHON.items():
        packages = next((python.parents[1] / "lib").glob("python*/site-packages"))
        shared = [path for name in ("torch", "nvidia", "triton", "torchvision") for path in packages.glob(name)]
        whole, torch = size(packages), sum(map(size, shared))
        found[side] = {"size, MB": whole, "size without torch, MB": whole - torch}
    return found


def size(folder: Path) -> float:
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_symlink()) / 1e6


def once(side: str, row: str, work: Path, threads: int) -> dict[str, float]:
    """One process: its own figures or, for whole commands, processor time, wall time and peak memory."""
    command = [str(PYTHON[side]), str(SCRIPT[side]), row, str(work), str(threads)]
    if row == "help":
        command = (
            [str(PYTHON[side].parent / side), "train", "--help"]
            if side == "adlight"
            else [str(PYTHON[side].parent / side), "--help"]
        )
    else:
        command[2] = OURS.get(row, row) if side == "adlight" else row
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment.pop("ADLIGHT_CACHE", None)
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=work)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    if row in WHOLE:
        processor = used.ru_utime + used.ru_stime
        return {"time, s": processor if threads == 1 else wall, "peak memory, MB": used.ru_maxrss * 1024 / 1e6}
    return json.loads(text.splitlines()[-1])


def measure(row: str, work: Path, threads: int, repeats: int, alone: bool = False) -> list[dict[str, str]]:
    """Take turns, and put both sides' figures beside each other; or ours beside what anomalib had (`alone`)."""
    if alone:
        known = remembered(row, threads)
        turns = [{"adlight": once("adlight", row, work, threads), "anomalib": known} for _ in range(repeats)]
    elif row == "install":
        turns = [installed()]
    else:
        sides = ("anomalib", "adlight") if row == "score" else ("adlight", "anomalib")  # ours repeats theirs
        repeats = 1 if row == "score" else repeats
        turns = [{side: once(side, row, work, threads) for side in sides} for _ in range(repeats)]
    lines = []
    for figure in turns[0]["adlight"]:
        pairs = [(turn["adlight"][figure], turn["anomalib"].get(figure)) for turn in turns]
        line = {"row": row, "threads": str(threads), "figure": figure, "adlight": short(median(a for a, _ in pairs))}
        if pairs[0][1] is not None:
            line["anomalib"] = short(median(b for _, b in pairs))
            ratios = [a / b if "/s" in figure else b / a for a, b in pairs]  # above 1: adlight is ahead
            if figure not in NO_RATIO:
                line |= {"ratio": f"{median(ratios):.2f}", "spread": f"{min(ratios):.2f}...{max(ratios):.2f}"}
        lines.append({**dict.fromkeys(COLUMNS, ""), **line, "times": str(len(pairs))})
    return lines


def remembered(row: str, threads: int) -> dict[str, float]:
    """What anomalib had when the row was last measured."""
    lines = csv.DictReader((HERE / "measured.csv").open())
    found = [line for line in lines if (line["row"], line["threads"]) == (row, str(threads)) and line["anomalib"]]
    return {line["figure"]: float(line["anomalib"].replace(",", "")) for line in found}


def short(value: float) -> str:
    if 1e-3 < abs(value) < 1:
        return f"{value:.6f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(fresh: list[dict[str, str]]) -> None:
    """Put fresh rows in place of old ones of their name and threads, in the table and in the README."""
    path = HERE / "measured.csv"
    old = list(csv.DictReader(path.open())) if path.exists() else []
    done = {(line["row"], line["threads"]) for line in fresh}
    rows = fresh + [line for line in old if (line["row"], line["threads"]) not in done]
    rows.sort(key=lambda line: (line["threads"], ROWS.index(line["row"])))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    table = ["| " + " | ".join(COLUMNS) + " |", "|---|--:|---|--:|--:|--:|---|--:|"]
    table += ["| " + " | ".join(line[column] for column in COLUMNS) + " |" for line in rows]
    text = "\n".join(["<!-- measured -->", "", *table, "", "<!-- /measured -->"])
    readme = HERE / "README.md"
    pattern = re.compile("<!-- measured -->.*<!-- /measured -->", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: text, readme.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"{', '.join(ROWS)}; all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--files", type=int, default=1000, help="that are predicted")
    parser.add_argument("--ours", action="store_true", help="measure adlight alone, beside anomalib's old figures")
    parser.add_argument("--work", type=Path, help="folder of the generated files; they are made where it is new")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    work = options.work or Path(tempfile.mkdtemp())
    if not (work / "parts").exists():
        # in a process of its own, since the peak memory of a child is never below what its parent had when it began
        subprocess.run([sys.executable, HERE / "shared.py", work, str(options.files)], check=True)
    for row in options.rows or [row for row in ROWS if not options.ours or row not in ("install", "score")]:
        lines = measure(row, work.resolve(), options.threads, options.repeats, options.ours)
        write(lines)
        for line in lines:
            print("  ".join(f"{line[column]:>12}" for column in COLUMNS), flush=True)


if __name__ == "__main__":
    main()

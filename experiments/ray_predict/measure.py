"""Time `adlight predict` in one process and by Ray actors; rows are added to the table.

python measure.py run=runs/pca out=measured.csv [images=10000,30000] [side=32] [turns=2]
"""

import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ENGINES = {"none": (), "ray, 1 actor": ("engine=ray", "actors=1"), "ray, 2 actors": ("engine=ray", "actors=2")}
COLUMNS = ("model", "engine", "images", "wall_s", "predict_s", "rest_s", "cpu_s", "images_per_s", "same_csv", "load")


def write_images(folder: Path, count: int, side: int) -> None:
    """Write square PNG files of smooth noise, a thousand per folder."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        cells.resize((side, side), Image.Resampling.BILINEAR).save(path, compress_level=1)


def cpu_seconds(root: int) -> dict[int, float]:
    """Read the processor time of a process and of all that it started, directly or not, from Linux's /proc."""
    parents, used = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        parents[int(place.name)], used[int(place.name)] = int(words[1]), sum(map(int, words[11:13]))
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return {pid: used[pid] / os.sysconf("SC_CLK_TCK") for pid in family & used.keys()}


def measure(name: str, run: str, images: Path, out: Path) -> dict[str, object]:
    """Time one command. -> a row, without whether its table is the expected one."""
    words = [f"run={run}", f"images={images}", "category=pooled", "save=none", "device=cpu", f"hydra.run.dir={out}"]
    command, started = [sys.executable, "-m", "adlight.predict", *words, *ENGINES[name]], time.perf_counter()
    cpu: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            cpu |= cpu_seconds(process.pid)
            time.sleep(0.2)
        wall, said = time.perf_counter() - started, process.stdout.read()
    count, rate = re.search(r"(\d+) images, 0 skipped, ([\d.]+) images/s", said).groups()
    predict = int(count) / float(rate)
    seconds = {"wall_s": round(wall, 1), "predict_s": round(predict, 1), "rest_s": round(wall - predict, 1)}
    seconds["cpu_s"] = round(sum(cpu.values()), 1)
    return {"model": Path(run).name, "engine": name, "images": int(count), **seconds, "images_per_s": float(rate)}


def main() -> None:
    """Measure each engine on each number of images, some times in turn."""
    words = {"images": "10000,30000", "side": "32", "turns": "2"}
    words |= dict(word.split("=", 1) for word in sys.argv[1:])
    with tempfile.TemporaryDirectory() as place, open(words["out"], "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        for count in map(int, words["images"].split(",")):
            images = Path(place) / f"{count}"
            write_images(images, count, int(words["side"]))
            for turn in range(int(words["turns"])):
                for name in ENGINES:
                    out = Path(place) / f"{count} {name} {turn}".replace(" ", "-").replace(",", "")
                    row = measure(name, words["run"], images, out)
                    expected = (Path(place) / f"{count}-none-{turn}" / "predictions.csv").read_bytes()
                    same = (out / "predictions.csv").read_bytes() == expected
                    writer.writerow({**row, "same_csv": same, "load": round(os.getloadavg()[0], 1)})
                    file.flush()


if __name__ == "__main__":
    main()

"""Peak memory of `predict` by tiles: python memory.py run=<run> pixel_threshold=<number> out=<csv> [sides=1024]."""

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDES, TILE = "1024,4096,8192", 512
KINDS = {
    "normal": ["threshold=1e9", "pixel_threshold=1e9", "save=none"],
    "anomalous": ["threshold=-1e9", "pixel_threshold={pixel_threshold}", "save=masks,maps"],
}


def write_image(path: Path, side: int) -> None:
    """Write a texture of 1,024 pixels, repeated to the side, as a PNG."""
    part = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    texture = np.asarray(Image.fromarray(part).resize((1024, 1024), Image.Resampling.BICUBIC))
    Image.fromarray(np.tile(texture, (side // 1024, side // 1024, 1))).save(path, compress_level=1)


def peak_memory(command: list[str]) -> tuple[float, float, float]:
    """Run a command. -> its peaks of anonymous and of all resident memory in MB, and its seconds."""
    started, anonymous, resident = time.perf_counter(), 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            anonymous = max(anonymous, int(fields.get("RssAnon", "0 kB").split()[0]))  # the kernel keeps no peak of it
            resident = max(resident, int(fields.get("VmHWM", "0 kB").split()[0]))
            time.sleep(0.01)
        assert process.returncode == 0, command
    return anonymous / 1000, resident / 1000, time.perf_counter() - started


def main() -> None:
    """Measure each kind of decision on each size."""
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    with tempfile.TemporaryDirectory() as place, open(words["out"], "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("side", "image", "anonymous_mb", "resident_mb", "wall_s"))
        for side in map(int, words.get("sides", SIDES).split(",")):
            image = Path(place) / f"{side}.png"
            write_image(image, side)
            for kind, settings in KINDS.items():
                inputs = [f"run={words['run']}", f"images={image}", f"tile={TILE}", "batch_size=8", "device=cpu"]
                out = f"hydra.run.dir={place}/{side}-{kind}"
                settings = [setting.format(**words) for setting in settings]
                peaks = peak_memory([sys.executable, "-m", "adlight.predict", *inputs, *settings, out])
                writer.writerow((side, kind, *(round(peak) for peak in peaks)))
                file.flush()


if __name__ == "__main__":
    main()

"""What this machine has, and what is wrong with a data set: `python -m adlight.doctor [dataset=mvtec ...]`."""

import hashlib
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from adlight import cli, runs
from adlight.data.mvtec import MVTecAD
from adlight.data.source import IMAGE_SUFFIXES, Source, list_images, subfolders, to_channels
from adlight.types import Record, UserError


class Look(NamedTuple):
    """What one image's files showed."""

    kind: str = ""  # such as `900x900 RGB`
    digest: bytes = b""  # of its pixels, the same for every format that keeps them
    problem: str | None = None


def doctor(config: DictConfig) -> list[str]:
    """Print what there is. -> what is wrong with it, a line each that says what to do."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log file has no width of its own
    facts, problems = machine()
    table = Table(show_header=False, title="this machine", title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
    if config.get("dataset") is not None:
        problems += check_data(config, console)
    for problem in problems:
        console.print(f"problem: {problem}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"{len(problems)} problem(s)" if problems else "all fine", highlight=False)
    return problems


def machine() -> tuple[dict[str, str], list[str]]:
    """What the machine and the environment have, by name, and what is wrong with them."""
    from adlight.callbacks.curves import has_wandb_key

    problems = []
    versions = {name: installed(name) for name in runs.PACKAGES}
    problems += [f"package {name} is missing: pip install adlight" for name, found in versions.items() if not found]
    facts = {"python": f"{platform.python_version()} ({sys.executable})", "system": platform.platform()}
    facts |= {"cores": str(os.cpu_count()), "memory": memory(), "disk": f"{free_gb('.'):.0f} GB free in {Path.cwd()}"}
    if free_gb(".") < 1:
        problems.append(
            f"{Path.cwd()} has less than 1 GB free: make room, or choose another with hydra.run.dir=<folder>"
        )
    facts["GPU"], wrong = gpu()
    problems += wrong
    try:
        import torchvision  # noqa: F401  (it checks on import whether its operators fit this torch)
    except (ImportError, RuntimeError) as error:
        problems.append(f"torchvision does not fit torch ({error}): install both from the same index in one command")
    facts["packages"] = ", ".join(f"{name} {found or 'missing'}" for name, found in versions.items())
    facts["AlexNet's weights"] = alexnet()
    facts["W&B key"] = "set" if has_wandb_key() else "none: logger=wandb stays offline"
    facts["data_root"] = os.environ.get("ADLIGHT_DATA") or "data (the environment's ADLIGHT_DATA is not set)"
    return facts, problems


def installed(package: str) -> str | None:
    """A package's version, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def memory() -> str:
    """The machine's memory."""
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (AttributeError, ValueError, OSError):  # not on every system
        return "unknown"


def free_gb(folder: str) -> float:
    """Free space, in GB."""
    return shutil.disk_usage(folder).free / 1e9


def gpu() -> tuple[str, list[str]]:
    """The GPUs, and what keeps torch from using one that is there."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{one.name} {one.total_memory / 1e9:.0f} GB" for one in found) + f" ({build})", []
    wrong = []
    if Path("/dev/nvidia0").exists():
        wrong.append(f"an NVIDIA GPU is there, but torch {torch.__version__} ({build}) cannot use it: see pytorch.org")
    return f"none (torch built with {build}): trainer=cpu, model=mae_small", wrong


def alexnet() -> str:
    """Whether the weights that LPIPS needs are there."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    return str(path) if path.exists() else "none: model=mae fetches them once; model.objective.lpips=0 does without"


def check_data(config: DictConfig, console: Console) -> list[str]:
    """Read all of a data set and print what was found. -> what is wrong with it."""
    for name in ("train_limit", "test_limit"):
        if name in config.dataset:
            config.dataset[name] = None  # all of it
    data = instantiate(config.dataset, _convert_="all")
    source, problems = data.source, []
    records: dict[str, list[Record]] = {}
    for split, listed in (("train", source.train), ("test", source.test)):
        try:
            records[split] = listed()
        except UserError as error:
            problems.append(str(error))
            records[split] = []
    console.print(source.protocol, highlight=False, soft_wrap=True, markup=False)
    looks = {split: look_at(source, part, split) for split, part in records.items()}
    if any(records.values()):
        console.print(summary(records, looks))
    for note in passed_over(record for part in records.values() for record in part):
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    problems += [look.problem for part in looks.values() for look in part if look.problem]
    problems += duplicates(records, looks) + few_normals(records["train"], data.val_fraction, data.seed)
    problems += unmasked(records["test"]) + (orphans(source) if isinstance(source, MVTecAD) else [])
    return list(dict.fromkeys(problems))  # a missing folder is missed by both splits


def look_at(source: Source, records: list[Record], split: str) -> list[Look]:
    """Decode records on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        looks = pool.map(lambda record: look(source, record), records)
        return list(track(looks, f"reading {split}", len(records), transient=True, disable=not sys.stdout.isatty()))


def look(source: Source, record: Record) -> Look:
    """Decode an image and its mask."""
    try:
        image = source.read(record)
        digest = hashlib.blake2b(to_channels(image, 3).tobytes(), digest_size=16, key=str(image.size).encode()).digest()
    except Exception as error:  # whatever a decoder throws, the user needs the file's name
        named = record.path in str(error)
        return Look(problem=str(error) if named else f"cannot read image {record.path}: {error}; mend or remove it")
    kind, problem = f"{image.size[0]}x{image.size[1]} {image.mode}", None
    try:
        mask = source.read_mask(record, image.size)
        if mask is not None and mask.getbbox() is None:
            problem = (
                f"mask {record.mask} marks nothing: its image {record.path} is labelled anomalous; draw the defect"
            )
    except UserError as error:
        problem = str(error)
    return Look(kind, digest, problem)


def summary(records: dict[str, list[Record]], looks: dict[str, list[Look]]) -> Table:
    """Rows of what was found, a category and split each."""
    table = Table(title="images", title_justify="left")
    for title in ("category", "split", "normal", "anomalous", "with mask", "unreadable", "sizes and modes"):
        table.add_column(title, justify="left" if title in ("category", "split", "sizes and modes") else "right")
    for category in sorted({record.category for part in records.values() for record in part}):
        for split, part in records.items():
            mine = [
                (record, seen) for record, seen in zip(part, looks[split], strict=True) if record.category == category
            ]
            kinds = Counter(seen.kind for _, seen in mine if seen.kind).most_common()
            shown = [f"{kind} ({count})" for kind, count in kinds[:3]] + [f"{len(kinds) - 3} more"] * (len(kinds) > 3)
            anomalous = sum(record.label for record, _ in mine)
            masked = sum(record.mask is not None for record, _ in mine)
            counts = [len(mine) - anomalous, anomalous, masked, sum(not seen.kind for _, seen in mine)]
            table.add_row(category, split, *map(str, counts), ", ".join(shown))
    return table


def passed_over(records: Iterable[Record]) -> list[str]:
    """Say which files beside the images are no image of a kind that is read."""
    notes = []
    for folder in sorted({Path(record.path).parent for record in records}):
        names = [path.name for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")]
        others = sorted(name for name in names if Path(name).suffix.lower() not in IMAGE_SUFFIXES)
        if others:
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            notes.append(f"passed over in {folder}: {len(others)} file(s) such as {others[0]} (read are {known})")
    return notes


def duplicates(records: dict[str, list[Record]], looks: dict[str, list[Look]]) -> list[str]:
    """Name the test images that were trained on."""
    trained = {seen.digest: record.path for record, seen in zip(records["train"], looks["train"], strict=True)}
    return [
        f"test image {record.path} has the very pixels of training image {trained[seen.digest]}: remove one of them"
        for record, seen in zip(records["test"], looks["test"], strict=True)
        if seen.digest and seen.digest in trained
    ]


def few_normals(records: list[Record], fraction: float, seed: int) -> list[str]:
    """Say which category has too few normal images to hold some out for validation."""
    from adlight.data.datamodule import split_normals

    try:
        split_normals(records, fraction, seed)
    except UserError as error:
        return [str(error)]
    return []


def unmasked(records: list[Record]) -> list[str]:
    """Name the categories of which only some anomalous images have a mask; without any there are no pixel metrics."""
    problems = []
    for category in sorted({record.category for record in records}):
        mine = [record for record in records if record.category == category and record.label]
        without = [record for record in mine if record.mask is None]
        if 0 < len(without) < len(mine):
            problems.append(
                f"{len(without)} of {len(mine)} anomalous images of {category} have no mask, the first: "
                f"{without[0].path}: add it, as pixel metrics take such an image for free of defects"
            )
    return problems


def orphans(source: MVTecAD) -> list[str]:
    """Name the masks whose image is missing."""
    problems = []
    for category in source.found() if source.wanted is None else source.wanted:
        folder = source.root / category
        for defect in subfolders(folder / "ground_truth"):
            stems = {path.stem for path in list_images(folder / "test" / defect)}
            for mask in list_images(folder / "ground_truth" / defect):
                if not {mask.stem, mask.stem.removesuffix("_mask")} & stems:
                    problems.append(
                        f"mask {mask} has no image in {folder / 'test' / defect}: add that or remove the mask"
                    )
    return problems


def arguments(argv: list[str]) -> list[str]:
    """Check that settings of a data set come with its name.

    Raises:
        UserError: they do not.
    """
    settings = [word for word in argv if word.startswith("dataset.")]
    if settings and cli.value_of(argv, "dataset") is None:
        raise UserError(f"{settings[0]} belongs to which data set? add dataset=mvtec, dataset=folder or another")
    return argv


def main() -> None:
    """Entry point."""
    problems: list[str] = []

    def task(config: DictConfig) -> None:
        problems.extend(doctor(config))

    cli.run(task, "doctor", arguments)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    main()

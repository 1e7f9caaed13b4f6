"""Run folders: what is written into them and how they are read; nothing else opens one.

runs/<name>/
    .hydra/config.yaml, overrides.yaml   the composed config
    run.json                             command, seed, commit, versions, machine
    checkpoints/best.ckpt, last.ckpt     tensors only
    metrics.csv, metrics.json            curves; final numbers (their presence marks a finished run)
    predictions.csv, defects.csv         a row a test image; a row a defect type
    panels/*.png, samples/*.png          test images; what a GAN makes while it is trained
    wandb.json                           id and group at W&B, where it is used
    job.json, error.txt                  of a sweep's job: number and overrides; why it failed, where it did
"""

import csv
import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from adlight.runs.config import CONF, SEEN, changed, leaves, plain
from adlight.types import Record, UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.detection.module import AnomalyModule, TestedImage
    from adlight.metrics.results import Results


def holds_results(folder: Path) -> bool:
    """Whether something that took time to compute lies in a folder."""
    return (folder / "metrics.json").exists() or (folder / "checkpoints").exists()


def rank() -> int:
    """This process's number among those that share a run (Lightning's ddp or Slurm's srun sets it); 0 writes."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or 0)


def start(run: Path, about: dict[str, Any]) -> None:
    """Write `run.json`. Results of an earlier part of the run are set aside: it counts as unfinished again."""
    if rank() != 0:
        return
    if (run / "metrics.json").exists():
        os.replace(run / "metrics.json", run / "metrics.previous.json")
    write_json(run / "run.json", about)
    print(f"run folder: {run}", flush=True)


def dashboard(run: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """What a run is called on the dashboard: `fresh` the first time, and the same again whenever it is resumed."""
    path = run / "wandb.json"
    if not path.exists():
        write_json(path, fresh)
    return json.loads(path.read_text())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


PREDICTIONS = (
    *("path", "category", "defect", "label", "score", "threshold", "anomalous"),
    *("threshold_source", "pixel_threshold", "area", "boxes"),
)
DEFECTS = ("category", "defect", "normal", "anomalous", "auroc", "ap", "recall_calibrated")


def prediction_rows(records: list[Record], predictions: list["TestedImage"]) -> Iterator[tuple[Any, ...]]:
    """Give a row a test image, with the columns `PREDICTIONS`: its three answers beside the truth."""
    for row in predictions:
        one = row.prediction
        boxes = " ".join(",".join(map(str, box)) for box in one.boxes)
        decision = row.label, one.score, one.threshold, int(one.anomalous)
        yield (*records[row.index][:3], *decision, one.threshold_source, one.pixel_threshold, one.area, boxes)


def write_predictions(path: Path, records: list[Record], predictions: list["TestedImage"]) -> None:
    """Write `prediction_rows` as CSV, at full precision."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(PREDICTIONS)
        writer.writerows(prediction_rows(records, predictions))


def write_defects(path: Path, results: "Results") -> None:
    """Write a row a defect type; what could not be computed is left empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, DEFECTS)
        writer.writeheader()
        for category, defects in results.defects.items():
            writer.writerows({"category": category, "defect": name, **found} for name, found in defects.items())


def write_results(folder: Path, module: "AnomalyModule", records: list[Record], about: dict[str, Any]) -> "Results":
    """Write the tables, then `metrics.json`, whose presence marks the run as finished. -> the results."""
    assert module.results is not None
    write_predictions(folder / "predictions.csv", records, module.predictions)
    write_defects(folder / "defects.csv", module.results)
    pooled, categories = module.calibrated.state().values()
    content = module.results.as_dict() | {
        "threshold_rule": str(module.rule),
        "pixel_threshold_rule": str(module.pixel_rule),
        "threshold_per": module.threshold_per,
        "threshold": pooled["image"],  # of all categories together; what decided is in `categories`
        "pixel_threshold": pooled["pixel"],
        "thresholds": categories,
    }
    write_json(folder / "metrics.json", content | about)
    return module.results


def metrics(run: Path) -> dict[str, float]:
    """Every metric that a finished run wrote, by name."""
    content = json.loads((run / "metrics.json").read_text())
    return content["validation"] | {name: value for name, value in content.items() if isinstance(value, float)}


def load_config(run: Path, overrides: list[str] | None = None) -> DictConfig:
    """Read the composed config of a run, and lay overrides over it.

    Raises:
        UserError: the folder holds no run.
    """
    config = read_yaml(run, "config")
    return changed(config, read_yaml(run, "hydra").hydra.runtime.choices, overrides) if overrides else config


def save_config(run: Path, config: DictConfig) -> None:
    """Write the files that Hydra leaves in a run, the one that counts last and whole."""
    folder = run / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(HydraConfig.instance().cfg, folder / "hydra.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, folder / "overrides.yaml")
    OmegaConf.save(config, folder / "config.part")
    os.replace(folder / "config.part", folder / "config.yaml")


def build_module(run: Path, overrides: list[str] | None = None) -> tuple["AnomalyModule", dict[str, Any]]:
    """Build a run's module without weights, and without its objective: nothing is trained, no LPIPS is needed.

    Args:
        run: the run folder.
        overrides: changes of its config, as on the command line.

    Returns:
        The module, and the settings that an image needs on its way to it: `image_size`, `resize`, `channels`,
        `precision`, and `ckpt`, the checkpoint that the run itself tested.

    Raises:
        UserError: the folder holds no run.
    """
    started = GlobalHydra.instance().is_initialized()
    ready = nullcontext() if started else initialize_config_dir(str(CONF), version_base="1.3")
    with ready:  # a changed group is composed anew, which needs our conf/
        config = load_config(run, overrides)
    config.model.objective = None
    settings = {name: config.dataset.get(name) for name in SEEN}
    settings |= {"precision": str(config.trainer.precision), "ckpt": config.ckpt}
    return instantiate(config.model, _convert_="all"), settings


def read_yaml(run: Path, name: str) -> DictConfig:
    """Read one of the files that Hydra left in a run."""
    path = run / ".hydra" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{run} is no run folder: {path} is missing")
    try:
        content = OmegaConf.load(path)
    except (YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): it is damaged") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{path} holds no settings: it is damaged")
    return content


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, finished or not."""
    return (folder / ".hydra" / "config.yaml").is_file()


def find_runs(places: Sequence[str]) -> list[Path]:
    """Run folders that are named or lie below, at any depth, numbers in their names in their order.

    What lies in a run's own folder (evaluations, predictions) belongs to that run: it is found where it is named.

    Args:
        places: folders or globs.

    Raises:
        UserError: one of them does not exist or matches nothing.
    """
    found = []
    for place in places:
        path = Path(place).expanduser()
        matches = [path] if path.exists() else list(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise UserError(f"runs={place}: there is no such folder, and as a glob it matches nothing")
        for match in matches:
            for folder, below, _ in os.walk(match):
                below[:] = [] if is_run(Path(folder)) else [name for name in below if not name.startswith(".")]
                found += [Path(folder)] if is_run(Path(folder)) else []
    return sorted(set(found), key=in_order)


def in_order(path: Path) -> list[tuple[float, str]]:
    """What sorts paths by their text, and by value where there are numbers: 0.75 before 0.8, 9 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(part), part) if i % 2 else (0.0, part) for i, part in enumerate(parts)]


def settings(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's config as values by dotted key, interpolations as they are written, and the groups it was composed of.

    Of an evaluation: those of its run with the evaluation's changes.

    Raises:
        UserError: the folder is of neither, or a file is damaged.
    """
    config = load_config(run)
    if "run" in config and "images" not in config:
        trained = next((folder for folder in run.parents if is_run(folder)), Path(str(config.run)))
        changes = {key: value for key, value in config.items_ex(resolve=False) if key != "run" and value is not None}
        config, run = OmegaConf.merge(load_config(trained), changes), trained  # type: ignore[assignment]
    if "model" not in config:
        raise UserError(f"{run} holds no training and no evaluation")
    has_choices = (run / ".hydra" / "hydra.yaml").is_file()
    choices = OmegaConf.select(read_yaml(run, "hydra"), "hydra.runtime.choices") if has_choices else None
    return {key.removeprefix("."): value for key, value in leaves(config).items()}, dict(choices or {})


def read_results(run: Path) -> dict[str, Any] | None:
    """What `metrics.json` holds, None where the run is not finished.

    Raises:
        UserError: the file is damaged.
    """
    path = run / "metrics.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not all(isinstance(of, dict) for of in content["categories"].values()):
            raise ValueError("no table of categories in it")
    except (ValueError, LookupError, AttributeError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): test the run again with adlight.evaluate") from error
    return content


def read_predictions(run: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Label, score and threshold of each test image, by category; empty where there is no `predictions.csv`.

    Raises:
        UserError: the file is damaged.
    """
    path, found = run / "predictions.csv", dict[str, list[tuple[int, float, float]]]()
    if not path.exists():
        return found
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                values = int(row["label"]), float(row["score"]), float(row["threshold"])
                found.setdefault(row["category"], []).append(values)
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    return found


def failure(run: Path) -> str | None:
    """The last line of `error.txt`, with the run's log; None where there is no such file."""
    path = run / "error.txt"
    if not path.is_file():
        return None
    lines = path.read_text(errors="replace").strip().splitlines() or ["no reason given"]
    log = next(iter(sorted(run.glob("*.log"))), None)
    return lines[-1] + (f" (log: {log})" if log else "")


def pictures(run: Path) -> list[Path]:
    """The run's panels, a file a category; older runs have a GAN's samples beside them."""
    return sorted(path for path in (run / "panels").glob("*.png") if not path.name.startswith("samples-"))


def find_unfinished(folders: list[Path], config: DictConfig) -> Path | None:
    """The newest unfinished run with a checkpoint and the same config (but for `resume`), or None."""
    wanted = {**plain(config), "resume": None}
    matches = [
        run
        for run in folders
        if (run / "checkpoints" / "last.ckpt").exists()
        and not (run / "metrics.json").exists()
        and (run / ".hydra" / "config.yaml").exists()
        and {**plain(load_config(run)), "resume": None} == wanted
    ]
    return max(matches, key=lambda run: (run / "checkpoints" / "last.ckpt").stat().st_mtime, default=None)


def checkpoint(run: Path, which: str) -> Path:
    """Path of a run's checkpoint.

    Args:
        run: the run folder.
        which: `best`, `last` or a path.

    Raises:
        UserError: there is no such file; the text says what there is.
    """
    path = run / "checkpoints" / f"{which}.ckpt" if which in ("best", "last") else Path(which)
    if not path.is_file():
        there = ", ".join(sorted(found.name for found in (run / "checkpoints").glob("*.ckpt"))) or "none"
        raise UserError(f"checkpoint {path} does not exist (in {run / 'checkpoints'}: {there})")
    return path


def load_weights(module: "AnomalyModule", path: Path, only: tuple[str, ...] = ("",)) -> None:
    """Load a checkpoint's tensors into a module built from the run's config.

    Args:
        module: the module.
        path: the checkpoint.
        only: beginnings of the tensors' names that are wanted; the others stay as they are.

    Raises:
        UserError: no checkpoint, or one of another architecture.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # pickle, zip and key errors alike: the file is no checkpoint of ours
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): train anew or name another"
        ) from error
    for name, buffer in module.named_buffers():
        if buffer.shape[:1] == (0,) and name in state and state[name].shape[1:] == buffer.shape[1:]:
            buffer.resize_(state[name].shape)  # without rows until it is fitted: as many as there were training images
    mine = {name: value for name, value in module.state_dict().items() if name.startswith(only)}
    state = {name: value for name, value in state.items() if name.startswith(only)}
    for name in sorted(mine.keys() | state.keys()):  # the thresholds beside the weights are no tensors
        shapes = [tuple(getattr(found[name], "shape", ())) if name in found else None for found in (state, mine)]
        if shapes[0] != shapes[1]:
            theirs, ours = (f"has shape {shape}" if shape is not None else "is missing" for shape in shapes)
            advice = "; set model.ema as it was there" if name.startswith("ema.") else ""
            raise UserError(
                f"checkpoint {path} is of another architecture: {name} {theirs} in it and {ours} in the model of this "
                f"config{advice}"
            )
    module.load_state_dict({**module.state_dict(), **state})

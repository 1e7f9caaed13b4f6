"""Report on finished runs, as tables and an HTML page: `adlight report runs=<folder or quoted glob>`."""

import time
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from adlight.cli import main as cli
from adlight.cli.words import require
from adlight.runs.files import write_atomically
from adlight.runs.find import SweepFolder, check_free
from adlight.runs.predictions import run_of
from adlight.types import UserError


def report(config: DictConfig) -> Path:
    """Collect the runs, write `results.csv`, `results.md` and `index.html`, and print the table. -> path of the page.

    Raises:
        UserError: there are no runs, a reference cannot be used, or a setting is out of range.
    """
    from adlight.reports import collect, grouping, reference, tables  # slow imports: not for --help
    from adlight.runs.programs import check_values

    check_values(config)
    places = [str(run_of(Path(place).expanduser())) for place in _to_list(config.runs)]
    named = None if config.reference is None else [name for name in _to_list(config.reference) if name != "none"]
    runs = reference.compare(collect.collect(places), named, config.reference_column)
    means = grouping.average_runs(runs.results)
    title = str(config.title or f"Runs in {', '.join(places)}")
    folder = Path(config.out).expanduser() if config.out else _default_folder(places)
    check_free("out", folder, below=False)
    if SweepFolder(folder).is_sweep:
        raise UserError(f"out={folder} is a sweep, and its table would be overwritten: choose another folder")
    written = [_write(folder / "results.csv", tables.results_csv(runs))]
    written.append(_write(folder / "results.md", tables.results_markdown(runs, means, title)))

    from adlight.reports import page  # slower still: with Matplotlib
    from adlight.reports.monitoring import monitor_runs

    monitoring = monitor_runs(runs, places, folder)
    numbers = float(config.tolerance), int(config.detailed), int(config.pictures)
    html = page.render(runs, means, title, *numbers, folder, monitoring)
    written.append(_write(folder / "index.html", html))
    problems = [f"{name}: {line}" for name, line in runs.problems.items()]
    problems += [*monitoring.problems, *monitoring.drift_lines]
    categories = runs.headlines["category"].dropna().unique()
    title = f"{runs.states} ({categories[0]})" if len(categories) == 1 else runs.states
    tables.print_table(tables.by_run(runs, short=True), title, [*problems, *(f"written: {path}" for path in written)])
    return written[-1]


def _to_list(value: str | ListConfig) -> list[str]:
    return [str(item) for item in value] if OmegaConf.is_list(value) else [str(value)]


def _default_folder(places: list[str]) -> Path:
    """Choose `report` inside a single folder; for a glob or several folders, a new folder in runs/."""
    if len(places) == 1 and Path(places[0]).expanduser().is_dir():
        return Path(places[0]).expanduser() / "report"
    return Path("runs") / f"report-{time.strftime('%Y%m%d-%H%M%S')}"


def _write(path: Path, text: str) -> Path:
    try:
        return write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror} (out=<folder> chooses another folder)") from error


def arguments(argv: list[str]) -> list[str]:
    """Check that `runs` is given."""
    require(argv, "runs", "report runs=<folder, or a glob in quotes>")
    return argv


def main() -> None:
    """Run as a program."""
    cli.run(report, "report", arguments)


if __name__ == "__main__":
    main()

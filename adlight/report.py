"""Tables and one page over any runs: `python -m adlight.report runs=<folder or quoted glob>`."""

import time
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from adlight.cli import main as cli
from adlight.cli.arguments import quote_values, shows_help, value_of
from adlight.runs.files import write_atomically
from adlight.types import UserError


def report(config: DictConfig) -> Path:
    """Collect the runs, write `results.csv`, `results.md` and `index.html`, print the table. -> the page.

    Raises:
        UserError: no runs, a reference that cannot be used, or a setting out of range.
    """
    from adlight.reports import collect, reference, summary  # here and not above: --help must not wait for them

    for name, least in (("tolerance", 0), ("detailed", 0), ("pictures", 0)):
        if isinstance(config[name], bool) or not isinstance(config[name], int | float) or config[name] < least:
            raise UserError(f"{name}={config[name]} is no number from {least} up")
    places = texts(config.runs)
    found = collect.collect(places)
    named = None if config.reference is None else [name for name in texts(config.reference) if name != "none"]
    tables = reference.find(named, found, config.reference_column)
    whole = summary.Report(found, tables, float(config.tolerance))
    title = str(config.title or f"Runs in {', '.join(places)}")
    folder = Path(config.out).expanduser() if config.out else default_folder(places)
    written = [write(folder / "results.csv", summary.results_csv(whole))]
    written.append(write(folder / "results.md", summary.markdown(whole, title)))

    from adlight.reports import page

    written.append(write(folder / "index.html", page.render(whole, title, int(config.detailed), int(config.pictures))))
    summary.print_report(whole, written)
    return written[-1]


def texts(value: str | ListConfig) -> list[str]:
    """One text or several."""
    return [str(one) for one in value] if OmegaConf.is_list(value) else [str(value)]


def default_folder(places: list[str]) -> Path:
    """Inside the one folder that was named; of a glob or several, a new one in runs/."""
    if len(places) == 1 and Path(places[0]).expanduser().is_dir():
        return Path(places[0]).expanduser() / "report"
    return Path("runs") / f"report-{time.strftime('%Y%m%d-%H%M%S')}"


def write(path: Path, text: str) -> Path:
    """Write a file. -> its path.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        return write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror} (out=<folder> chooses another folder)") from error


def arguments(argv: list[str]) -> list[str]:
    """Quote what Hydra's grammar would take apart; a list in brackets is left as it is.

    Raises:
        UserError: `runs` is missing.
    """
    if shows_help(argv):
        return argv
    if value_of(argv, "runs") is None:
        raise UserError("say which runs: python -m adlight.report runs=<folder, or a glob in quotes>")
    return quote_values(argv, "runs", "out", "reference", "title", lists=True)


def main() -> None:
    """Entry point."""
    cli.run(report, "report", arguments)


if __name__ == "__main__":
    main()

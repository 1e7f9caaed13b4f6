"""The command `adlight`: `adlight train ...` is `python -m adlight.train ...`, and so on."""

import os
import runpy
import sys

from adlight import __version__
from adlight.types import unknown_name

COMMANDS = {
    "train": "train and test a detector, or many with -m",
    "evaluate": "score a finished run again: another threshold or score, no training",
    "predict": "score new images: boxes, masks and heat maps",
    "export": "export a run as one ONNX graph and compare the two",
    "federate": "train one detector on images that stay at several sites",
    "learn": "improve a finished run with a few labelled images",
    "group": "group similar anomalies of a finished run",
    "serve": "serve a finished run as a web page and a JSON endpoint",
    "report": "tables and one page for many runs",
    "doctor": "check this machine, and find problems in a data set",
}
HELP = f"""\
adlight {__version__}: industrial image anomaly detection

  adlight train model=retrieval dataset=folder dataset.root=<folder> dataset.normal_dir=good
  adlight predict run=runs/<name> images=<file or folder>

{"".join(f"  {name:10}{line}{chr(10)}" for name, line in COMMANDS.items())}
adlight <command> --help lists its settings. Exit codes: 0 done; 1 an internal error, or problems that doctor found;
2 an error that you can fix, in one line; 130 stopped."""


def main() -> None:
    """Run a program by name, as `python -m` does, so that the processes that it starts run the same program."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--help", "-h", "help"):
        print(HELP)
    elif command in ("--version", "-V"):
        print(f"adlight {__version__}")
    elif command not in COMMANDS:
        print(f"error: {unknown_name('command', command, list(COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    else:
        if not sys.flags.safe_path and os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.insert(0, os.getcwd())  # for the user's own models and data sets
        sys.argv = [sys.argv[0], *sys.argv[2:]]
        runpy.run_module(f"adlight.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

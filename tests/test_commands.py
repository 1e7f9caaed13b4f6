"""Every command that the README, the experiments and the configs print composes to a config."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "experiments").glob("*/README.md")),
    *sorted((ROOT / "conf").rglob("*.yaml")),
]
EXTRAS = ("hydra/launcher=", "sweep=search", "trainer=slurm")  # packages or an environment that tests do without
ANY = {"model=<any>": "model=mae_small", "dataset=<any>": "dataset=synthetic"}


def commands(page, program):
    """The words behind `python -m adlight.<program>` of a page, its shell variables filled in."""
    text = page.read_text().replace("\\\n", " ")
    variables = dict(re.findall(r'^([A-Z]+)="([^"\n]*)"', text, re.M))
    for line in re.findall(rf"python -m adlight\.{program} ([^\n`]+)", text):
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        for placeholder, value in ANY.items():
            line = line.replace(placeholder, value)
        if not re.search(r"<the same|<\.\.\.>|\.\.\.|\$", line):
            yield shlex.split(re.sub(r"<[^>]*>", "x", re.sub(r"\s{2,}\S.*|\s+#.*", "", line)), comments=True)


def train_commands():
    found = {}
    for page in PAGES:
        for words in commands(page, "train"):
            if not any(word.startswith(EXTRAS) for word in words) and "resume=auto" not in words:
                found.setdefault(shlex.join(words), page)
    return found


@pytest.mark.parametrize("line", train_commands())
def test_a_printed_command_composes(line, adlight):
    outcome = adlight("train", *shlex.split(line), "--cfg", "job")
    assert outcome.code == 0, outcome.err
    assert "model:" in outcome.out and "dataset:" in outcome.out


def test_there_are_commands_to_try():
    pages = {page.parent.name for page in train_commands().values()}
    assert len(train_commands()) > 20 and {"gan_mnist", "mae_mvtec", "mae_ablation", "experiment"} <= pages

"""A sweeper of Hydra for tables in which some models are trained on each category, and others on all of them at once.

Hydra accepts sweepers from this package only.
"""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

CATEGORY, MODEL = "dataset.category=", "model="


class ColumnSweeper(BasicSweeper):
    """Multiply out what a sweep varies, as Hydra's own sweeper does, then give each model the categories that are its.

    The jobs' categories (`all` stands for those found in `dataset.root`) become a job each of a model in `apart`, and
    one job for all of them together of any other model.

    Args:
        max_batch_size, params: see Hydra's `BasicSweeper`.
        apart: models that are trained on each category apart.
    """

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None = None, apart: Sequence[str] = ()
    ) -> None:
        super().__init__(max_batch_size, params)
        self.apart = apart

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        """Give the overrides of each job."""
        assert self.config is not None
        return arrange(super().get_job_batch(), self.apart, str(self.config.dataset.root))


def arrange(jobs: Sequence[Sequence[str]], apart: Sequence[str], root: str) -> list[list[str]]:
    """Give each model's jobs its categories, see `ColumnSweeper`. `root` holds a folder per category.

    Raises:
        UserError: all categories are asked for, and there are none.
    """
    named = list(
        dict.fromkeys(word.removeprefix(CATEGORY) for job in jobs for word in job if word.startswith(CATEGORY))
    )
    names = [name for one in named for name in one.strip("[]").split(",")]
    together = "all" if named == ["all"] else f"[{','.join(dict.fromkeys(names))}]"
    if "all" in names:
        from adlight.data.mvtec import MVTecAD  # here and not above: --help must not wait for it

        names = MVTecAD(root).categories()
    found: dict[tuple[str, ...], None] = {}
    for job in jobs:
        rest = [word for word in job if not word.startswith(CATEGORY)]
        model = next((word.removeprefix(MODEL) for word in rest if word.startswith(MODEL)), "")
        for category in names if model in apart else [together]:
            found[(*rest, f"{CATEGORY}{category}")] = None
    return [list(job) for job in found]

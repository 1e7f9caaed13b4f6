"""The config of a finished run to look at images with: nothing is trained, logged or drawn."""

from omegaconf import DictConfig, OmegaConf

from adlight.runs.config import drop_objective, require_nodes
from adlight.runs.folder import RunFolder

NODES = ("dataset", "model", "trainer", "calibration")
ALONE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "enable_progress_bar": False}  # a few images


def frozen_config(run: RunFolder, device: str = "auto", root: str | None = None) -> DictConfig:
    """Read a run's config to build its data set, detector and trainer from, for one device.

    Args:
        run: the run.
        device: `cpu`, `gpu` or another of Lightning's accelerators; `auto`: a GPU if there is one.
        root: where the data set lies now; None: where it lay.

    Raises:
        UserError: the folder holds no run.
    """
    saved = run.config()
    OmegaConf.set_struct(saved, False)
    require_nodes(saved, *NODES)
    drop_objective(saved)
    if root is not None:
        saved.dataset.root = root
    saved.logger = saved.callbacks = None
    saved.trainer.update({**ALONE, "accelerator": device})
    return saved

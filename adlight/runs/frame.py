"""What a run finds out about its images before it begins: whether they are sound, and the frame of their shapes."""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from adlight.runs.config import FRAME_KEYS, instantiate_node
from adlight.runs.files import rank
from adlight.runs.folder import RunFolder
from adlight.types import UserError

if TYPE_CHECKING:  # torch takes seconds: not for --help
    from adlight.data.datamodule import AnomalyDataModule
    from adlight.metrics.thresholds import Calibration


def settle_frame(config: DictConfig, run: RunFolder) -> None:
    """Let the training images' shapes decide where `keep_shape` is `auto`; the config says so from then on."""
    if config.dataset.keep_shape != "auto":
        return
    from adlight.data.frames import choose_frame  # takes time to import: not for --help

    asked: Any = OmegaConf.to_container(config.dataset)
    config.requested_frame = {name: asked[name] for name in FRAME_KEYS}
    config.dataset.keep_shape = False
    data = instantiate_node(config.dataset)
    tiled = config.dataset.get("tile") is not None  # tiles have one shape
    if not tiled and isinstance(config.dataset.image_size, int) and config.dataset.resize is None:  # it is undecided
        with run.data_lock():
            data.prepare_data()
        chosen = choose_frame(data.source.sizes(), config.dataset.image_size)
        if chosen["image_size"] != config.dataset.image_size and rank() == 0:
            settings = " ".join(f"dataset.{name}={value}" for name, value in chosen.items())
            print(f"the training images are no squares: {settings}", flush=True)
        config.dataset.update(chosen)
    if rank() == 0:
        run.write_config(config)


def check_data(data: "AnomalyDataModule", calibration: "Calibration", run: RunFolder) -> None:
    """Prepare and check all images of a run, and print what a user should know of them.

    Raises:
        UserError: something is wrong with a file, nothing is to be tested, or a category will have no thresholds.
    """
    from adlight.metrics.thresholds import GIVEN  # likewise

    with run.data_lock():
        data.prepare_data()
    data.check()
    trained, tested = ({one.category for one in records} for records in (data.source.train(), data.source.test()))
    if calibration.per == "category" and calibration.of(None).source != GIVEN and tested - trained:
        raise UserError(
            f"{', '.join(sorted(tested - trained))}: tested, but no normal image of it is trained on, from which its "
            "thresholds would come: add some, or take one threshold for all categories by calibration.per=all"
        )
    for note in data.notes if rank() == 0 else ():
        print(f"data: {note}", flush=True)

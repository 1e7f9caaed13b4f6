"""Which ground-truth mask belongs to which image, by their names."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from adlight.types import UserError


def match_masks(images: Sequence[Path], folder: Path, masks: Sequence[Path], mask_folder: Path) -> dict[Path, str]:
    """Match masks called `<stem>` or `<stem>_mask` to images; one in the image's own sub-folder goes first.

    Args:
        images: below `folder`.
        folder: what the images' sub-folders are relative to.
        masks: below `mask_folder`.
        mask_folder: has the same sub-folders, or all masks.

    Returns:
        Masks' paths by image; an image or mask without a partner is left out.

    Raises:
        UserError: two masks for one image, or one mask for two images.
    """
    by_name = defaultdict(list)
    for mask in masks:
        by_name[mask.relative_to(mask_folder).with_suffix("")].append(mask)
    image_of: dict[Path, Path] = {}
    for image in images:
        name = image.relative_to(folder).with_suffix("")
        found: list[Path] = []
        for stem in (name, Path(name.name)):
            found = found or [
                mask for key in (stem, stem.with_name(f"{stem.name}_mask")) for mask in by_name.get(key, [])
            ]
        if len(found) > 1:
            raise UserError(f"two masks for {image}: {found[0]} and {found[1]}: remove one of them")
        if found and found[0] in image_of:
            raise UserError(
                f"mask {found[0]} belongs to two images: {image_of[found[0]]} and {image}: rename one and its mask"
            )
        image_of |= {mask: image for mask in found}
    return {image: str(mask) for mask, image in image_of.items()}

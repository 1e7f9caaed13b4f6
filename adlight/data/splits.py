"""Which normal images are held out for the validation."""

import torch
from torch import Generator

from adlight.types import Record, UserError


def split_normals(records: list[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Split normal records into training and validation, category by category. -> (train, validation).

    Raises:
        UserError: a category with too few images to split.
    """
    train: list[Record] = []
    held_out: list[Record] = []
    for category in sorted({record.category for record in records}):
        members = [record for record in records if record.category == category]
        count = max(1, round(fraction * len(members)))
        if count >= len(members):
            raise UserError(
                f"category {category} has {len(members)} normal training image(s): too few to hold out {count} for "
                f"validation (val_fraction={fraction})"
            )
        order = torch.randperm(len(members), generator=Generator().manual_seed(seed)).tolist()
        held_out += [members[i] for i in sorted(order[:count])]
        train += [members[i] for i in sorted(order[count:])]
    return train, held_out

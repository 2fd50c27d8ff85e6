"""How many rows climb through the layers at once, so that they fit the memory and fill a GPU."""

from __future__ import annotations

import torch
from torch import nn

from dkn_engine.config import AttributionConfig
from dkn_engine.models.layout import Layout

# Bytes that one batch of rows may hold for its backward pass, with rows_per_batch="auto"; on a GPU,
# which waits for launches if rows are few, a share of the memory that is free, if that is more.
BUDGET = 1 << 30
_FREE_SHARE = 4
MOST_EDITS = 1024


def most_path_points(config: AttributionConfig, model: nn.Module, layout: Layout) -> int:
    """Most path points of a batch: ``rows_per_batch``, or as many as fit with their gradients."""
    if config.rows_per_batch != "auto":
        return config.rows_per_batch
    budget, cards = BUDGET, _cards(layout)
    if cards:
        budget = max(budget, min(torch.cuda.mem_get_info(c)[0] for c in cards) // _FREE_SHARE)
    # A row entering at a middle layer keeps about 12 d + 6 F numbers in each layer above.
    numbers = (12 * layout.d_model + 6 * layout.width) * layout.n_layers // 2
    per_row = numbers * next(model.parameters()).itemsize
    return int(min(4096, max(64, budget // per_row)))


def most_edits(config: AttributionConfig, model: nn.Module, layout: Layout) -> int:
    """Most rows of edits of a batch, which keep nothing for gradients.

    1,024, and on a GPU as many as path points if these are more.
    """
    points = most_path_points(config, model, layout)
    if config.rows_per_batch != "auto":
        return points
    return max(MOST_EDITS, points) if _cards(layout) else MOST_EDITS


def _cards(layout: Layout) -> list[torch.device]:
    return [device for device in set(layout.devices) if device.type == "cuda"]

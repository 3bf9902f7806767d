"""From samples to the batch that the method takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import FUNCTIONS
from torch import Tensor

from dinov2_pretraining.data.block_masks import masks_of_batch
from mmseg_eomt.datasets.samplers import SampleIndex

_MASKS = 0x6D61736B  # keeps the masks' random numbers apart from those of the augmentation


@FUNCTIONS.register_module()
def collate_views(
    samples: Sequence[dict[str, Any]],
    *,
    patch_size: int = 14,
    mask_probability: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    min_aspect: float = 0.3,
    max_aspect: float | None = None,
) -> dict[str, Any]:
    """Stacks the views of a batch and draws the masks of its global views.

    The masks depend on the seed of the run and on the place of the batch's first sample in it
    (`StepSampler`), not on workers. With another sampler they come from NumPy's global generator.

    Shape legend: B images, L local views of one, N = (global side / patch_size)^2 patches.

    Args:
        samples (Sequence[dict]): B samples of `UnlabelledImages` with `MultiCropViews`.
        patch_size (int): Side of the model's patches in pixels. Defaults to 14.
        mask_probability (float): Share of the global views that is masked. Defaults to 0.5.
        mask_ratio (tuple[float, float]): Smallest and largest share of masked patches in them.
            Defaults to (0.1, 0.5).
        min_aspect (float): Smallest height / width of a masked block. Defaults to 0.3.
        max_aspect (float, optional): Largest. Defaults to None: ``1 / min_aspect``.

    Returns:
        dict: ``inputs`` with ``global_views`` ``uint8 [2 * B, 3, S, S]`` (all first views, then
        all second), ``local_views`` ``uint8 [L * B, 3, s, s]`` in the same order, ``masks``
        ``bool [2 * B, N]``; ``data_samples``: B dicts with ``path``.

    Raises:
        ValueError: If the views do not consist of whole patches.
    """
    global_views = _view_major([sample["global_views"] for sample in samples])
    local_views = _view_major([sample["local_views"] for sample in samples])
    for name, side in (("global", global_views.shape[-1]), ("local", local_views.shape[-1])):
        if side % patch_size:
            near = max(patch_size, round(side / patch_size) * patch_size)
            raise ValueError(
                f"MultiCropViews: {name}_size is {side}, which is no multiple of the model's "
                f"patches of {patch_size} pixels (patch_size of collate_views). Set it to {near}."
            )
    cells = global_views.shape[-1] // patch_size
    masks = masks_of_batch(
        len(global_views),
        (cells, cells),
        random=_generator(samples[0].get("sample_idx")),
        probability=mask_probability,
        ratio=mask_ratio,
        min_aspect=min_aspect,
        max_aspect=max_aspect,
    )
    return {
        "inputs": {
            "global_views": global_views,
            "local_views": local_views,
            "masks": torch.from_numpy(masks),
        },
        "data_samples": [{"path": sample["img_path"]} for sample in samples],
    }


def _view_major(views: list[Tensor]) -> Tensor:
    """``[V * B, ...]`` from B tensors ``[V, ...]``."""
    return torch.stack(views, dim=1).flatten(0, 1)


def _generator(index: Any) -> np.random.RandomState:
    # RandomState, unlike Generator, promises the same stream in every NumPy version.
    if isinstance(index, SampleIndex):
        seed = np.random.SeedSequence((_MASKS, index.seed, index.position))
        return np.random.RandomState(np.random.MT19937(seed))
    return np.random.RandomState(np.random.randint(2**32, dtype=np.uint32))

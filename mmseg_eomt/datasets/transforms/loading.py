"""Reading the files of a `FolderSegDataset`."""

from __future__ import annotations

from typing import Any

from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

from mmseg_eomt.errors import BadFileError
from mmseg_eomt.images.reading import read_image, read_mask


@TRANSFORMS.register_module()
class LoadFolderImage(BaseTransform):  # type: ignore[misc]
    """Reads ``img_path`` as ``uint8 [H, W, channels]``; the rules are those of `images.reading`.

    Sets ``img``, ``img_shape`` and ``ori_shape`` (both ``(H, W)``).

    Args:
        channels (int): Channels that the model takes. `FolderSegDataset` sets it. Defaults to 3,
            as BGR.
    """

    def __init__(self, *, channels: int = 3) -> None:
        self.channels = channels

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads the image."""
        image = read_image(results["img_path"], channels=self.channels)
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadFolderAnnotations(BaseTransform):  # type: ignore[misc]
    """Reads ``seg_map_path`` and maps its values to internal class ids.

    Needs ``label_table``, which `FolderSegDataset` provides. Sets ``gt_seg_map``
    ``uint8 [H, W]``, 255 where unlabelled. Comes after the image and before any resizing.

    Raises:
        BadFileError: If the mask is unreadable, holds an unknown value or differs from the image
            in size.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Reads the mask."""
        path = results["seg_map_path"]
        if "label_table" not in results:
            raise ValueError(
                f"{path}: LoadFolderAnnotations reads the masks of a FolderSegDataset only. Use "
                "LoadAnnotations for other datasets."
            )
        mask = read_mask(path)
        shape = results.get("ori_shape")
        if shape is not None and tuple(shape) != mask.shape[:2]:
            raise BadFileError(
                f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} (width x height) but its "
                f"image {results['img_path']} is {shape[1]}x{shape[0]} when shown. They must be "
                "equal: resize or turn the mask, or pair the right files."
            )
        results["gt_seg_map"] = results["label_table"](mask, path)
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results

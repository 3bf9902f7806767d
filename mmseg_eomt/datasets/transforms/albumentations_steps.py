"""albumentations' transforms in a pipeline, exact and safe for labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

_LABEL_FILLS = ("fill_mask", "mask_value")
_NEAREST = (0, 6)  # OpenCV's INTER_NEAREST and INTER_NEAREST_EXACT


@TRANSFORMS.register_module()
class AlbumentationsSteps(BaseTransform):  # type: ignore[misc]
    """Runs transforms of albumentations 2 on image and labels.

    Unlike albumentations alone and mmseg's ``Albu``:

    * random numbers come from NumPy's generator, which `SeedSample` seeds, so runs are exact on
      any number of workers and after a resume. Each transform has its own, where albumentations'
      `set_random_seed` gives all the same;
    * what comes in from outside the image is unlabelled, where albumentations writes class 0;
    * colours are in the order RGB that albumentations expects.

    Args:
        transforms (Sequence): Each a dict with ``type``, a name in albumentations, its arguments,
            and for ``OneOf`` or ``Sequential`` a nested list ``transforms``; for example
            ``[dict(type='GaussianBlur', p=0.3), dict(type='Affine', shear=10, p=0.5)]``.

    Raises:
        ImportError: If albumentations 2 is not installed.
        ValueError: If a transform is unknown, or would write false labels.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]]) -> None:
        # Otherwise it asks a server for its newest version.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        try:
            import albumentations
        except ImportError as error:
            raise ImportError(
                "AlbumentationsSteps needs albumentations 2, which is not installed: "
                "pip install 'albumentations>=2,<3'"
            ) from error
        if int(albumentations.__version__.split(".")[0]) != 2:
            raise ImportError(
                f"AlbumentationsSteps needs albumentations 2; {albumentations.__version__} is "
                "installed: pip install 'albumentations>=2,<3'"
            )
        self.steps = [dict(step) for step in transforms]
        self._compose = albumentations.Compose([_build(albumentations, s) for s in self.steps])

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes ``img`` ``uint8 [H, W, C]`` and the maps named in ``seg_fields``."""
        for part in _parts(self._compose):
            seed = int(np.random.randint(0, 2**31))
            # Not set_random_seed, which for a container seeds all inside alike.
            part.seed = seed
            part.random_generator = np.random.default_rng(seed)
            part.py_random.seed(seed)
        image = results["img"]
        three = image.ndim == 3 and image.shape[2] == 3
        fields = results.get("seg_fields", [])
        # Labels are shifted by one, so that unlabelled is 0, which albumentations fills with.
        shifted = [_as_bytes(results[key], key) + np.uint8(1) for key in fields]
        changed = self._compose(
            image=np.ascontiguousarray(image[..., ::-1]) if three else image,
            **({"masks": shifted} if shifted else {}),
        )
        image = changed["image"]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            raise ValueError(
                f"AlbumentationsSteps: the image is {getattr(image, 'dtype', type(image).__name__)}"
                " afterwards, not uint8. Remove Normalize, ToFloat and ToTensorV2: the model "
                "normalises by itself."
            )
        results["img"] = np.ascontiguousarray(image[..., ::-1]) if three else image
        for key, labels in zip(fields, changed.get("masks", ()), strict=True):
            results[key] = np.asarray(labels) - np.uint8(1)
        results["img_shape"] = results["pad_shape"] = image.shape[:2]
        return results

    def __repr__(self) -> str:
        return f"AlbumentationsSteps({self.steps})"


def _build(library: Any, step: Mapping[str, Any]) -> Any:
    options = dict(step)
    name = options.pop("type", None)
    kind = getattr(library, str(name), None)
    if not (isinstance(kind, type) and hasattr(kind, "set_random_seed")):
        raise ValueError(
            f"AlbumentationsSteps: {name!r} is no transform of albumentations "
            f"{library.__version__}. Give dict(type='NAME', ...) with a name of its documentation."
        )
    for key in _LABEL_FILLS:
        if options.get(key) is not None:
            raise ValueError(
                f"AlbumentationsSteps: {name}: {key} is {options[key]}, but what comes in from "
                "outside is always unlabelled. Remove it."
            )
    if options.get("mask_interpolation", 0) not in _NEAREST:
        raise ValueError(
            f"AlbumentationsSteps: {name}: mask_interpolation is {options['mask_interpolation']}; "
            f"allowed are {_NEAREST} (nearest), as others would mix class ids. Remove it."
        )
    if "transforms" in options:
        options["transforms"] = [_build(library, part) for part in options["transforms"]]
    return kind(**options)


def _parts(container: Any) -> Iterator[Any]:
    """A container and everything inside."""
    yield container
    for part in getattr(container, "transforms", ()):
        yield from _parts(part)


def _as_bytes(labels: Any, key: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if labels.dtype == np.uint8:
        return np.asarray(labels)
    raise ValueError(
        f"AlbumentationsSteps: {key} is {labels.dtype}; allowed is uint8. Put it behind "
        "LoadAnnotations and in front of any step that widens labels."
    )

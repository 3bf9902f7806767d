"""The EoMT segmentor: preprocessing, windows, post-processing, and its compilation by blocks.

Shape legend: B images, C channels, H/W pixels, n windows, Q queries, K classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from mmseg_eomt.images.windows import cover, wished_window
from mmseg_eomt.models.joint_attention import fold_weights, run_joint_block
from mmseg_eomt.models.upscale import mask_logits
from mmseg_eomt.models.window_scores import View, label_map, score_map


@MODELS.register_module()
class EoMTDataPreProcessor(SegDataPreProcessor):  # type: ignore[misc]
    """mmseg's ``SegDataPreProcessor`` for crops of any size and test images of different sizes.

    Images cross to the device as uint8 and are normalised there. In training those smaller than
    the largest of the batch are padded at the right and bottom, with the mean colour and the
    label ``seg_pad_val``. In testing ``inputs`` becomes a list of images ``[C, H, W]`` and nothing
    is padded, so windows can be cut from the images themselves.

    Args:
        kwargs: As mmseg's, without ``size``, ``size_divisor``, ``pad_val`` and ``test_cfg``: sizes
            are those of the images.

    Raises:
        ValueError: If one of these is given.
    """

    def __init__(self, **kwargs: Any) -> None:
        needless = sorted({"size", "size_divisor", "pad_val", "test_cfg"} & set(kwargs))
        if needless:
            raise ValueError(
                f"data_preprocessor has {needless}, which EoMTDataPreProcessor does not take: it "
                "pads a training batch to its largest image and no test image. Leave them out."
            )
        super().__init__(**kwargs)
        # mmseg's own flag is named differently in its two families.
        self._reorders_channels = bool(kwargs.get("bgr_to_rgb") or kwargs.get("rgb_to_bgr"))

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Normalises ``inputs`` (list of ``[C, H, W]`` or ``[B, C, H, W]``)."""
        data = self.cast_data(data)
        images, samples = list(data["inputs"]), data.get("data_samples")
        if not training:
            return {"inputs": [self._normalise(image) for image in images], "data_samples": samples}
        height = max(image.shape[-2] for image in images)
        width = max(image.shape[-1] for image in images)
        if all(image.shape[-2:] == (height, width) for image in images):
            inputs = self._normalise(torch.stack(images))
        else:
            inputs = torch.stack([_pad(self._normalise(i), height, width, 0) for i in images])
            for sample in samples or ():
                labels = sample.gt_sem_seg.data
                del sample.gt_sem_seg.data
                sample.gt_sem_seg.data = _pad(labels, height, width, self.seg_pad_val)
        if self.batch_augments is not None:
            inputs, samples = self.batch_augments(inputs, samples)
        return {"inputs": inputs, "data_samples": samples}

    def _normalise(self, images: Tensor) -> Tensor:
        """Reorders and normalises ``[..., C, H, W]``."""
        if self._reorders_channels and images.shape[-3] == 3:
            images = images.flip(-3)
        if not self._enable_normalize:
            return images.float()
        # One float copy of the image, not three.
        normalised: Tensor = (images - self.mean).div_(self.std)
        return normalised


def _pad(image: Tensor, height: int, width: int, value: float) -> Tensor:
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=value)


MIB = 2**20


@MODELS.register_module()
class EoMTSegmentor(EncoderDecoder):  # type: ignore[misc]
    """Trains and tests an EoMT head on a ViT.

    Testing follows the published evaluation: windows along the long side of the resized image
    (all windows of all images share forwards of ``window_batch``), scores averaged where windows
    overlap, brought to the original size, argmax.

    Args:
        backbone (dict): Config of ``DINOv2``, ``DINOv3`` or ``TimmViT``.
        decode_head (dict): Config of ``EoMTHead``. Width, patch size and number of joint blocks
            are taken from the backbone.
        test_cfg (dict): ``mode`` 'window' (default) or 'whole'; ``window_size`` int, (height,
            width) or None for squares of the image's short side (default); ``window_batch``
            windows a forward (default 8); ``score_memory`` MiB that scores per pixel may take
            (default 256); ``return_scores`` whether samples also get ``seg_logits [K, H, W]``
            (default False).
        kwargs: Of mmseg's ``EncoderDecoder``.

    Raises:
        ValueError: If ``test_cfg`` has an unknown key or value.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        decode_head: dict[str, Any],
        *,
        test_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # mmengine would look the name up in its root registry, which does not know mmseg's.
        preprocessor = kwargs.pop("data_preprocessor", None) or {}
        if isinstance(preprocessor, dict):
            preprocessor = MODELS.build({"type": "EoMTDataPreProcessor", **preprocessor})
        super().__init__(
            backbone=backbone,
            decode_head=decode_head,
            test_cfg=checked_test_cfg(test_cfg),
            data_preprocessor=preprocessor,
            **kwargs,
        )

    def _init_decode_head(self, decode_head: dict[str, Any]) -> None:
        for name in ("embed_dims", "patch_size", "num_joint_blocks"):
            decode_head = {name: getattr(self.backbone, name), **decode_head}
        super()._init_decode_head(decode_head)

    def prepare_accumulation(self, batches: Sequence[dict[str, Any]]) -> None:
        """Gives the micro-batches of one optimiser step common loss denominators.

        Args:
            batches (Sequence[dict]): As the data loader made them, in the order they will be run.
        """
        totals = torch.zeros(2)
        for batch in batches:
            labels = torch.stack([s.gt_sem_seg.data for s in batch["data_samples"]]).squeeze(1)
            totals += self.decode_head.count_targets(labels)
        totals = (totals / len(batches)).to(self.data_preprocessor.device)
        all_reduce(totals, op="mean")
        self.decode_head.set_totals(totals)

    def predict(
        self, inputs: Tensor | list[Tensor], data_samples: list[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Label maps at the original size.

        Args:
            inputs (Tensor | list[Tensor]): Normalised images ``[B, C, H, W]``, or a list of
                ``[C, H, W]`` of any sizes.
            data_samples (list[SegDataSample], optional): Their ``ori_shape`` says the size of the
                result (default: that of the input), ``flip`` and ``flip_direction`` how the
                input was mirrored.

        Returns:
            list[SegDataSample]: ``pred_sem_seg`` holds ``int32 [1, H, W]``, class indices;
            ``seg_logits`` the scores if asked for.
        """
        if data_samples is None:
            data_samples = [
                SegDataSample(metainfo={"ori_shape": tuple(image.shape[-2:])}) for image in inputs
            ]
        metas = [sample.metainfo for sample in data_samples]
        views = self.views(inputs, metas)
        for sample, view in zip(data_samples, views, strict=True):
            self.store_result(sample, [view])
        return data_samples

    def views(self, inputs: Tensor | list[Tensor], metas: Sequence[dict[str, Any]]) -> list[View]:
        """Runs the network on all windows of all images.

        Args:
            inputs (Tensor | list[Tensor]): Normalised images, as for :meth:`predict`.
            metas (Sequence[dict]): Their meta information.

        Returns:
            list[View]: One per image.
        """
        plans = []
        crops: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for image in inputs:
            size = (image.shape[-2], image.shape[-1])
            window, starts = cover(size, wished_window(self.test_cfg, size))
            plans.append((size, window, starts, len(crops[window])))
            height, width = window
            crops[window] += [image[:, y : y + height, x : x + width] for y, x in starts]
        outputs = {window: self._run_windows(cut) for window, cut in crops.items()}
        views = []
        for (size, window, starts, first), meta in zip(plans, metas, strict=True):
            masks, classes, padded = outputs[window]
            part = slice(first, first + len(starts))
            flip = meta.get("flip_direction") if meta.get("flip") else None
            views.append(
                View(masks[part], classes[part], tuple(starts), window, padded, size, flip)
            )
        return views

    def network(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """All that is learned, from windows ``[n, C, H, W]`` to the last prediction.

        In the precision of the weights. ``optimize_for_inference`` compiles this method.

        Returns:
            tuple[Tensor, Tensor]: Mask logits ``[n, Q, s_h, s_w]``, class logits ``[n, Q, K+1]``.
        """
        images = images.to(self.decode_head.query.weight.dtype)
        masks, classes = self.decode_head(self.extract_feat(images))
        return masks, classes

    def _run_windows(self, crops: list[Tensor]) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Mask logits ``[n, Q, s_h, s_w]``, class probabilities ``[n, K, Q]``, padded size."""
        masks, classes = torch.empty(0), torch.empty(0)
        limit = self.test_cfg["window_batch"]
        for first in range(0, len(crops), limit):
            part = slice(first, min(first + limit, len(crops)))
            images = torch.stack(crops[part])
            mask_logits, class_logits = self.network(images)
            probabilities = class_logits.float().softmax(-1)[..., :-1].transpose(1, 2)
            if first == 0:
                # Filled batch by batch: a list joined at the end would take twice the memory.
                masks = mask_logits.new_empty((len(crops), *mask_logits.shape[1:]))
                classes = probabilities.new_empty((len(crops), *probabilities.shape[1:]))
            masks[part], classes[part] = mask_logits, probabilities
        patch = self.backbone.patch_size
        height, width = (side + -side % patch for side in crops[0].shape[-2:])
        return masks, classes, (height, width)

    def switch_to_deploy(self) -> None:
        """Prepares the weights for predictions only, in place; MMDeploy calls it.

        Layer scales are folded and biases joined: the weights are then no longer those of a file.
        """
        self.eval().requires_grad_(False)
        fold_weights(self.backbone.vit)

    def store_result(self, sample: SegDataSample, views: list[View]) -> None:
        """Puts the label map of an image, averaged over its views, into its sample."""
        size = (sample.metainfo["ori_shape"][0], sample.metainfo["ori_shape"][1])
        if self.test_cfg["return_scores"]:
            scores = score_map(views, size)
            sample.set_data({"seg_logits": PixelData(data=scores)})
            labels = scores.argmax(0).int()
        else:
            labels = label_map(views, size, memory=self.test_cfg["score_memory"] * MIB)
        sample.set_data({"pred_sem_seg": PixelData(data=labels[None])})

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        """Scores ``[B, K, H, W]`` of whole inputs at their own size (for mmseg's tools)."""
        size = (inputs.shape[-2], inputs.shape[-1])
        masks, classes, padded = self._run_windows(list(inputs))
        views = [
            View(mask[None], klass[None], ((0, 0),), size, padded, size)
            for mask, klass in zip(masks, classes, strict=True)
        ]
        return torch.stack([score_map([view], size) for view in views])


@MODELS.register_module()
class EoMTTTAModel(BaseTTAModel):  # type: ignore[misc]
    """Test-time augmentation that keeps mask predictions, not full-resolution scores, per view.

    Args:
        module (dict | nn.Module): The segmentor.
    """

    def test_step(self, data: dict[str, Any]) -> list[SegDataSample]:
        """Averages the scores of all views of each image.

        Args:
            data (dict): ``inputs`` and ``data_samples``, each a list over views of lists over
                images, as ``TestTimeAug`` and ``pseudo_collate`` make them.

        Returns:
            list[SegDataSample]: One per image.
        """
        segmentor = self.module
        samples = data["data_samples"][0]
        views_of: list[list[View]] = [[] for _ in samples]
        for inputs, data_samples in zip(data["inputs"], data["data_samples"], strict=True):
            batch = segmentor.data_preprocessor(
                {"inputs": inputs, "data_samples": data_samples}, False
            )
            metas = [sample.metainfo for sample in data_samples]
            for views, view in zip(views_of, segmentor.views(batch["inputs"], metas), strict=True):
                views.append(view)
        for sample, views in zip(samples, views_of, strict=True):
            segmentor.store_result(sample, views)
        return list(samples)

    def merge_preds(self, data_samples_list: Any) -> Any:
        """Not used: views are merged before they become label maps."""
        raise NotImplementedError("EoMTTTAModel merges views in test_step.")


def checked_test_cfg(test_cfg: dict[str, Any] | None) -> dict[str, Any]:
    """``test_cfg`` with defaults; an unknown key or value is an error."""
    defaults = {
        "mode": "window",
        "window_size": None,
        "window_batch": 8,
        "score_memory": 256,
        "return_scores": False,
    }
    given = dict(test_cfg or {})
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"model.test_cfg has unknown keys {unknown}; it takes {list(defaults)}.")
    checked = {**defaults, **given}
    if checked["mode"] not in ("window", "whole"):
        raise ValueError(
            f"model.test_cfg.mode is {checked['mode']!r}: it must be 'window' or 'whole'."
        )
    for name in ("window_batch", "score_memory"):
        if checked[name] < 1:
            raise ValueError(f"model.test_cfg.{name} is {checked[name]}: it must be at least 1.")
    return checked


# Those with CUDA graphs are left out: a graph that runs again before its backward pass would
# overwrite what the first run kept.
MODES = ("default", "max-autotune-no-cudagraphs")


def compile_blocks(model: Any, *, mode: str = "default", backend: Any = "inductor") -> None:
    """Compiles the parts of a segmentor that repeat, in place and without graph breaks.

    Three graphs are compiled, at their first call: a plain block, a joint block, and the upscale
    blocks with the mask product. All blocks of a kind share one, so that compiling takes as long
    as for one block however deep the model is. Mask probabilities stay outside: annealing them
    compiles nothing anew, until the last one of a block reaches 0 and its mask goes (one more
    graph). State-dict keys stay as they are.

    Args:
        model (EoMTSegmentor): Changed in place.
        mode (str): Of ``torch.compile``, one of ``MODES``. Defaults to ``'default'``.
        backend (str): Of ``torch.compile``. Defaults to ``'inductor'``, which needs a C++ compiler
            on a CPU.

    Raises:
        ValueError: If the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"Unknown mode {mode!r} of torch.compile: choose one of {MODES}.")
    options: dict[str, Any] = {"fullgraph": True, "backend": backend}
    if backend == "inductor":
        options["mode"] = mode
    head = model.decode_head
    model.backbone.run_block = torch.compile(run_joint_block, **options)
    head.run_joint_block = model.backbone.run_block
    head.mask_logits = torch.compile(mask_logits, **options)

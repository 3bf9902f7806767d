"""The training loss of mask classification: class, cross-entropy and dice of matched queries.

Shapes: B images, Q queries, K classes, H/W pixels, P points, N points of the pool, G matched masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.models.matcher import HungarianMatcher, Matches
from mmseg_eomt.models.recompute import ChosenValues
from mmseg_eomt.models.step import StepRandom
from mmseg_eomt.models.targets import LabelTargets, sample_labels, sample_maps
from mmseg_eomt.models.upscale import MaskMaps


@MODELS.register_module()
class MaskClassificationLoss(nn.Module):
    """Mask2Former's criterion on label maps, for every prediction of EoMT.

    Each prediction is matched on its own (:class:`HungarianMatcher`). Matched queries learn
    their class and its mask (binary cross-entropy and dice at points where the mask is most
    uncertain, and at uniform ones); the others learn "no object". Weights and numbers are those
    of Mask2Former, which EoMT trains with.

    The random points of a step are shared by its images and masks (one pool per prediction, one
    for the matching), so that labels are looked up once per image. Every single mask still sees
    independent uniform points.

    Losses are normalised by the number of masks (at least 1) and by the summed class weights of
    all queries, each averaged over ranks, so that W processes give the losses of one process with
    the same global batch. A class that an image shows counts as a mask even if no query is left
    for it, as in Mask2Former. If an image shows more classes than there are queries, its share of
    the class denominator is Q times the mean weight of the classes it shows, whichever of them
    are matched: that is exact for equal class weights, and can be counted before the forward pass.

    Args:
        num_classes (int): K, without "no object".
        num_points (int): P, points per mask. Defaults to 12544.
        oversample_ratio (float): Candidates per point, from which the most uncertain are chosen.
            Defaults to 3.0.
        importance_ratio (float): Share of the points chosen for uncertainty; the others are
            uniform. Defaults to 0.75.
        class_weight (float): Weight of the class loss. Defaults to 2.0.
        mask_weight (float): Weight of the cross-entropy loss. Defaults to 5.0.
        dice_weight (float): Weight of the dice loss. Defaults to 5.0.
        no_object_weight (float): Class weight of "no object". Defaults to 0.1.
        class_weights (Sequence[float], optional): Weight of each class in the class loss; K
            values, or K + 1 with that of "no object" last (``no_object_weight`` is then not
            used). Defaults to None: all 1.
        ignore_rule (str): What ignored pixels are. ``'negative'``: background of every mask, in
            matching and losses, which every published EoMT trains with; it is the default so that
            published results can be reproduced. ``'skip'``: left out. A point then counts with
            the bilinear share of labelled pixels around it (the border repeats outside the
            image); cross-entropy is the mean over so weighted points (their sum at least 1),
            dice sums with the same weights, and candidates that see only ignored pixels are
            chosen last. Without ignored pixels both
            rules give the same numbers. Defaults to ``'negative'``.
        ignore_index (int): Label of ignored pixels. Defaults to 255.

    Raises:
        ValueError: If an argument is out of range.
    """

    class_weights: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        class_weights: Sequence[float] | None = None,
        ignore_rule: str = "negative",
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if num_classes < 1 or num_points < 1:
            raise ValueError(
                "num_classes and num_points must be at least 1, "
                f"found {num_classes} and {num_points}"
            )
        if oversample_ratio < 1:
            raise ValueError(f"oversample_ratio must be at least 1, found {oversample_ratio}")
        if not 0 <= importance_ratio <= 1:
            raise ValueError(f"importance_ratio must be in [0, 1], found {importance_ratio}")
        self.num_classes = num_classes
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.ignore_rule = ignore_rule
        self.ignore_index = ignore_index
        self.matcher = HungarianMatcher(
            num_points=num_points,
            class_weight=class_weight,
            mask_weight=mask_weight,
            dice_weight=dice_weight,
            ignore_rule=ignore_rule,
        )
        self._class_weights = _complete_class_weights(class_weights, num_classes, no_object_weight)
        weights = torch.tensor(self._class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self,
        predictions: Sequence[tuple[Tensor | MaskMaps, Tensor]],
        labels: Tensor,
        *,
        random: StepRandom,
        totals: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of each prediction, in float32 whatever the dtype of the logits.

        Args:
            predictions (Sequence[tuple[Tensor, Tensor]]): ``(mask_logits [B, Q, h, w],
                class_logits [B, Q, K+1])`` before each joint block and, last, after them. Mask
                logits may be :class:`MaskMaps`, whose backward pass costs less.
            labels (Tensor): ``[B, H, W]`` integer class ids; H, W may differ from h, w.
            random (StepRandom): Random numbers of this step.
            totals (Tensor, optional): ``[2]`` denominators: :meth:`count_targets` averaged over
                the micro-batches of an optimiser step and over ranks. Defaults to None: those of
                ``labels``, averaged over ranks here, in one collective.

        Returns:
            dict[str, Tensor]: ``loss_mask``, ``loss_dice``, ``loss_class`` of the last prediction
            and ``loss_mask_block{i}``, ... of the one before joint block i. Their sum is the loss.
            All of them are NaN if a matching cost is not finite.

        Raises:
            ValueError: If shapes do not fit or a label is out of range.
        """
        self._check_shapes(predictions, labels)
        targets = LabelTargets.from_labels(
            labels, num_classes=self.num_classes, ignore_index=self.ignore_index
        )
        if totals is None:
            totals = self._count(targets, predictions[0][1].shape[1])
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(totals)
                totals = totals / dist.get_world_size()
        num_masks = totals[0].clamp(min=1)
        # 0 only where "no object" has weight 0 and no class is present: the loss is then 0 / tiny.
        class_mass = totals[1].clamp(min=torch.finfo(torch.float32).tiny)

        matches = self.matcher(
            [(_all_logits(masks), classes) for masks, classes in predictions],
            targets,
            random=random,
        )
        losses: dict[str, Tensor] = {}
        with torch.autocast(labels.device.type, enabled=False):
            for number, (mask_logits, class_logits) in enumerate(predictions):
                last = number == len(predictions) - 1
                suffix = "" if last else f"_block{number}"
                cross_entropy, dice = self._mask_losses(
                    mask_logits, matches, targets, number=number, random=random
                )
                classes = self._class_loss(class_logits, matches, number=number)
                losses["loss_mask" + suffix] = self.mask_weight * cross_entropy / num_masks
                losses["loss_dice" + suffix] = self.dice_weight * dice / num_masks
                losses["loss_class" + suffix] = self.class_weight * classes / class_mass
        if not matches.finite:
            # Also where the matched pairs would hide it. Each parameter still gets a gradient, so
            # no process waits for another, and all of them see that it is NaN.
            losses = {name: value * float("nan") for name, value in losses.items()}
        return losses

    def count_targets(self, labels: Tensor, *, num_queries: int) -> Tensor:
        """Denominators of ``labels[B, H, W]``: ``[2]`` float32, additive over images.

        Returns:
            Tensor: Number of masks, and sum of the class weights over all B * Q queries.
        """
        targets = LabelTargets.from_labels(
            labels, num_classes=self.num_classes, ignore_index=self.ignore_index
        )
        return self._count(targets, num_queries)

    def _count(self, targets: LabelTargets, num_queries: int) -> Tensor:
        present = targets.present.float()
        masks = present.sum(1)  # [B]
        matched = masks.clamp(max=num_queries)
        # Not copied from another device: that would wait for it.
        weights = self.class_weights
        if weights.device != present.device:
            weights = torch.tensor(self._class_weights, device=present.device)
        mean_weight = (present * weights[:-1]).sum(1) / masks.clamp(min=1)
        mass = matched * mean_weight + (num_queries - matched) * weights[-1]
        return torch.stack([masks.sum(), mass.sum()])

    def _class_loss(self, logits: Tensor, matches: Matches, *, number: int) -> Tensor:
        """Summed weighted cross-entropy of ``logits[B, Q, K+1]``."""
        flat = logits.float().flatten(0, 1)
        wanted = torch.full_like(flat[:, 0], self.num_classes, dtype=torch.long)
        wanted.scatter_(0, matches.queries[number], matches.classes[number])
        return F.cross_entropy(flat, wanted, weight=self.class_weights, reduction="sum")

    def _mask_losses(
        self,
        logits: Tensor | MaskMaps,
        matches: Matches,
        targets: LabelTargets,
        *,
        number: int,
        random: StepRandom,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice of ``logits[B, Q, h, w]``, each summed over matched masks."""
        queries, slots = matches.queries[number], matches.slots[number]
        if isinstance(logits, MaskMaps):
            maps = logits.rows(queries, slots, matches.num_slots).float()  # [G, h, w]
        else:
            maps = logits.flatten(0, 1).index_select(0, queries).float()
        if len(maps) == 0:
            # The empty sum is an exact zero that still reaches the logits, as DDP asks.
            return maps.sum(), maps.sum()
        images = queries // matches.num_queries
        pool, num_candidates = self.pool_points(random, number, maps.device)
        samples = sample_labels(targets.codes, pool, ignored_code=targets.num_classes)
        share = samples.labelled_share() if self.ignore_rule == "skip" else None  # [B, N]
        slot_of, _ = targets.slots(matches.num_slots)
        class_values = samples.class_values(slot_of, matches.num_slots).flatten(0, 1)  # [B * M, N]
        rows = images * matches.num_slots + slots

        pool_logits = sample_maps(maps.detach(), pool)  # [G, N]
        certainty = pool_logits[:, :num_candidates].abs()
        if share is not None:
            nothing_to_learn = share[:, :num_candidates] == 0
            certainty.masked_fill_(nothing_to_learn[images], torch.inf)
        uncertain = smallest(certainty, int(self.importance_ratio * self.num_points))
        uniform = torch.arange(num_candidates, len(pool), device=pool.device)
        index = torch.cat([uncertain, uniform.expand(len(maps), -1)], dim=1)  # [G, P]

        value = class_values.index_select(0, rows).gather(1, index)
        logit = chosen_values(maps, pool_logits, index, pool)
        probability = logit.sigmoid()
        overlap = (probability * value).sum(1)
        if share is None:
            cross_entropy = F.binary_cross_entropy_with_logits(logit, value, reduction="none").mean(
                1
            )
            mass = probability.sum(1)
        else:
            weight = share.index_select(0, images).gather(1, index)
            cross_entropy = (weight * F.softplus(logit) - value * logit).sum(1)
            cross_entropy = cross_entropy / weight.sum(1).clamp(min=1)
            mass = (weight * probability).sum(1)
        dice = 1 - (2 * overlap + 1) / (mass + value.sum(1) + 1)
        return cross_entropy.sum(), dice.sum()

    def pool_points(
        self, random: StepRandom, number: int, device: torch.device | str
    ) -> tuple[Tensor, int]:
        """Points ``[N, 2]`` that the masks of prediction ``number`` share.

        Returns:
            tuple[Tensor, int]: The points: first the candidates of the importance sampling, then
            the uniform ones that every mask uses. And the number of candidates.
        """
        num_candidates = int(self.oversample_ratio * self.num_points)
        num_uniform = self.num_points - int(self.importance_ratio * self.num_points)
        purpose = f"loss points of prediction {number}"
        pool = random.uniform(purpose, num_candidates + num_uniform, 2, device=device)
        return pool, num_candidates

    def _check_shapes(self, predictions: Sequence[tuple[Any, Tensor]], labels: Tensor) -> None:
        if not predictions:
            raise ValueError("predictions is empty: pass at least the last prediction")
        for number, (source, classes) in enumerate(predictions):
            masks = _all_logits(source)
            expected = (len(labels), masks.shape[1], self.num_classes + 1)
            if masks.dim() != 4 or len(masks) != len(labels) or classes.shape != expected:
                raise ValueError(
                    f"prediction {number}: mask logits {list(masks.shape)} and class logits "
                    f"{list(classes.shape)} do not fit {len(labels)} label maps of "
                    f"{self.num_classes} classes: they must be [B, Q, h, w] and [B, Q, "
                    f"{self.num_classes + 1}] with B = {len(labels)}"
                )


def _all_logits(masks: Tensor | MaskMaps) -> Tensor:
    return masks.logits if isinstance(masks, MaskMaps) else masks


def _complete_class_weights(
    class_weights: Sequence[float] | None, num_classes: int, no_object_weight: float
) -> list[float]:
    """K + 1 class weights, "no object" last."""
    if class_weights is None:
        class_weights = [1.0] * num_classes
    weights = [float(weight) for weight in class_weights]
    if len(weights) == num_classes:
        weights.append(no_object_weight)
    if len(weights) != num_classes + 1:
        raise ValueError(
            f"class_weights has {len(weights)} values; give {num_classes} (one a class) or "
            f"{num_classes + 1} (that of 'no object' last)"
        )
    if min(weights) < 0:
        raise ValueError(f"class_weights must not be negative, found {min(weights)}")
    return weights


def smallest(rows: Tensor, count: int) -> Tensor:
    """Indices ``[G, count]`` of the smallest numbers of each of ``rows[G, N]``, in any order.

    On a CPU a partition in numpy takes a quarter of the time of torch's ``topk``; it releases the
    interpreter, so that threads share the rows.
    """
    if rows.device.type != "cpu":
        return rows.topk(count, dim=1, largest=False, sorted=False).indices
    chosen = np.empty((len(rows), count), dtype=np.int64)
    values = rows.numpy()

    def choose(number: int) -> None:
        row = values[number]
        bound = np.partition(row, count - 1)[count - 1]
        found = np.flatnonzero(row <= bound)
        if len(found) != count:  # some equal the bound and are too many, or there is a nan
            found = np.argpartition(row, count - 1)[:count]
        chosen[number] = found

    if count:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(choose, range(len(rows))))
    return torch.from_numpy(chosen)


def chosen_values(maps: Tensor, pool_values: Tensor, index: Tensor, pool: Tensor) -> Tensor:
    """Values ``[G, P]`` of ``maps[G, h, w]`` at points chosen from ``pool[N, 2]``.

    Args:
        maps (Tensor): ``[G, h, w]`` float32; the gradient goes to them.
        pool_values (Tensor): ``[G, N]``, :func:`sample_maps` of the maps at the pool.
        index (Tensor): ``[G, P]`` int64, which points of the pool.
        pool (Tensor): ``[N, 2]``.

    Returns:
        Tensor: ``[G, P]``, equal to ``sample_maps(maps, pool[index])`` in value and gradient.
    """
    values: Tensor = ChosenValues.apply(maps, pool_values, index, pool)
    return values

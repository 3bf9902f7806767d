"""Assign one query to each class of each image, for all predictions at once.

Shapes: B images, Q queries, K classes, M class slots of an image, P points, A = L+1 predictions,
G matched pairs of one prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mmseg_eomt.models.step import StepRandom
from mmseg_eomt.models.targets import LabelTargets, bilinear_neighbours, sample_labels

Prediction = tuple[Tensor, Tensor]
IGNORE_RULES = ("negative", "skip")
# Sampled logits to hold at a time: what a CPU can keep in cache; 128 MiB fill any GPU.
_GROUP_LIMIT = {"cpu": 2**20, "cuda": 2**25}


@dataclass(frozen=True)
class Matches:
    """Matched pairs of all predictions. Images that show no class have none.

    Attributes:
        queries (Tensor): ``[A, G]`` flat query, image * Q + query.
        classes (Tensor): ``[A, G]`` class id that the query is to predict.
        slots (Tensor): ``[A, G]`` rank of that class among those the image shows.
        num_queries (int): Q.
        num_slots (int): Most classes that an image shows, at least 1.
        finite (bool): False if a cost was not: the pairs then mean nothing.
    """

    queries: Tensor
    classes: Tensor
    slots: Tensor
    num_queries: int
    num_slots: int
    finite: bool = True


def matching_points(random: StepRandom, num_points: int, device: torch.device | str) -> Tensor:
    """The points ``[P, 2]`` at which all masks of a step are compared for the matching."""
    return random.uniform("matching points", num_points, 2, device=device)


@MODELS.register_module()
class HungarianMatcher(nn.Module):
    """Minimum-cost assignment of queries to the classes an image shows.

    The cost of a pair is the weighted sum of minus the class probability, the binary
    cross-entropy and the dice loss at points drawn uniformly (Mask2Former, section 3.2 and
    appendix). Every prediction is matched on its own, as EoMT does. The points of a step are
    shared by its images and predictions. Costs of all of them are computed on the device in
    float32, cross to the host in one transfer, and the pairs come back in another.

    If an image shows more classes than there are queries, the cheapest Q pairs are matched and
    the other classes have no query.

    Args:
        num_points (int): Points per mask. Defaults to 12544, Mask2Former's number.
        class_weight (float): Weight of the class cost. Defaults to 2.0.
        mask_weight (float): Weight of the cross-entropy cost. Defaults to 5.0.
        dice_weight (float): Weight of the dice cost. Defaults to 5.0.
        ignore_rule (str): See :class:`MaskClassificationLoss`. Defaults to ``'negative'``.

    Raises:
        ValueError: If ``ignore_rule`` is none of the two, or all weights are 0.
    """

    def __init__(
        self,
        *,
        num_points: int = 12544,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        ignore_rule: str = "negative",
    ) -> None:
        super().__init__()
        if ignore_rule not in IGNORE_RULES:
            raise ValueError(f"ignore_rule must be one of {IGNORE_RULES}, found {ignore_rule!r}")
        if class_weight == 0 and mask_weight == 0 and dice_weight == 0:
            raise ValueError("all matching weights are 0: set at least one above 0")
        self.num_points = num_points
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.ignore_rule = ignore_rule

    @torch.no_grad()
    def forward(
        self, predictions: Sequence[Prediction], targets: LabelTargets, *, random: StepRandom
    ) -> Matches:
        """Match each prediction ``(mask_logits[B, Q, h, w], class_logits[B, Q, K+1])``.

        Costs that are not finite are no error here: one process must not leave the others waiting
        for it. ``finite`` says so, and the loss becomes NaN.

        Raises:
            ValueError: If a label is out of range.
        """
        device = targets.present.device
        points = matching_points(random, self.num_points, device)
        with torch.autocast(device.type, enabled=False):
            costs = self.costs(predictions, targets, points)  # [A, B, Q, M]
        present, extremes = targets.present, targets.extremes
        # One transfer. Labels are whole numbers far below 2**24, so float32 holds them.
        packed = torch.cat([costs.flatten(), present.flatten().float(), extremes.float()])
        host = packed.cpu().numpy()
        targets.check(int(host[-2]), int(host[-1]))
        host_costs = host[: costs.numel()].reshape(costs.shape)
        host_present = host[costs.numel() : -2].reshape(present.shape) > 0
        shown = np.arange(costs.shape[3]) < host_present.sum(1)[:, None, None]  # [B, 1, M]
        finite = bool(np.isfinite(host_costs).all(where=shown))
        if not finite:
            host_costs = np.nan_to_num(host_costs)
        pairs = torch.from_numpy(_assign(host_costs, host_present))  # [3, A, G]
        if device.type == "cuda":
            pairs = pairs.pin_memory().to(device, non_blocking=True)
        queries, classes, slots = pairs.to(device)
        num_slots = max(1, int(host_present.sum(1).max()))
        return Matches(queries, classes, slots, costs.shape[2], num_slots, finite)

    def costs(
        self, predictions: Sequence[Prediction], targets: LabelTargets, points: Tensor
    ) -> Tensor:
        """Costs ``[A, B, Q, M]`` of the classes that images show, ascending, at ``points[P, 2]``.

        On a CPU M is the most classes that an image shows. Elsewhere that number would have to be
        waited for, so that M is K: columns that nobody reads cost a device less than the wait.
        """
        batch, num_queries = predictions[0][0].shape[:2]
        on_cpu = points.device.type == "cpu"
        num_slots = targets.num_classes
        if on_cpu:
            num_slots = max(1, int(targets.present.sum(1).max()))
        slot_of, class_of = targets.slots(num_slots)
        samples = sample_labels(targets.codes, points, ignored_code=targets.num_classes)
        values = samples.class_values(slot_of, num_slots)  # [B, M, P]
        share = samples.labelled_share() if self.ignore_rule == "skip" else None  # [B, P]
        # A group is all images on a GPU, and one image on a CPU unless they are small.
        limit = _GROUP_LIMIT["cpu" if on_cpu else "cuda"]
        together = max(1, limit // (num_queries * len(points)))
        groups = [slice(start, start + together) for start in range(0, batch, together)]
        sizes = {(masks.shape[-2], masks.shape[-1]) for masks, _ in predictions}
        samplers = {size: PointSampler(points, size) for size in sizes}
        costs = []
        for masks, logits in predictions:
            sample = samplers[masks.shape[-2], masks.shape[-1]]
            probabilities = logits.float().softmax(-1)
            wanted = class_of[:, None].expand(-1, num_queries, -1)
            cost = probabilities.gather(2, wanted).mul_(-self.class_weight)  # [B, Q, M]
            for part in groups:
                weights = None if share is None else share[part]
                cost[part] += self._mask_costs(masks[part], values[part], weights, sample)
            costs.append(cost)
        return torch.stack(costs)

    def _mask_costs(
        self, masks: Tensor, values: Tensor, share: Tensor | None, sample: PointSampler
    ) -> Tensor:
        """Weighted mask costs ``[b, Q, M]`` of ``masks[b, Q, h, w]`` to class ``values[b, M, P]``.

        With logits x, probabilities s, class values t and point weights v, cross-entropy sums to
        sum(v * softplus(x)) - sum(t * x), so that one product of matrices serves all pairs.
        """
        batch, num_queries = masks.shape[:2]
        logits = sample(masks.float().flatten(0, 1))  # [P, b * Q]
        probabilities = logits.sigmoid()

        def overlaps(points_first: Tensor, targets: Tensor) -> Tensor:
            """Sums over points of ``[P, b * Q]`` times ``targets[b, M, P]``: ``[b, Q, M]``."""
            columns = points_first.view(-1, batch, num_queries).transpose(0, 1)  # [b, P, Q]
            return (targets @ columns).transpose(1, 2)

        logit_overlap, overlap = overlaps(logits, values), overlaps(probabilities, values)
        if share is None:
            mass = probabilities.sum(0).view(batch, num_queries, 1)
            softplus = softplus_sum(logits, probabilities).view(batch, num_queries, 1)
            cross_entropy = (softplus - logit_overlap) / len(logits)
        else:
            weights = share[:, None]  # [b, 1, P]
            mass = overlaps(probabilities, weights)
            softplus = overlaps(F.softplus(logits), weights)
            labelled = weights.sum(2, keepdim=True).clamp(min=1)
            cross_entropy = (softplus - logit_overlap) / labelled
        dice = 1 - (2 * overlap + 1) / (mass + values.sum(-1)[:, None] + 1)
        return self.mask_weight * cross_entropy + self.dice_weight * dice


def _assign(
    costs: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Pairs ``[3, A, G]`` (flat query, class, slot) of least cost, for ``costs[A, B, Q, M]``."""
    num_queries = costs.shape[2]
    shown = [np.flatnonzero(row) for row in present]
    pairs = []
    for prediction in costs:
        queries, classes, slots = [], [], []
        for image, ids in enumerate(shown):
            cost = prediction[image, :, : len(ids)]
            rows, columns = linear_sum_assignment(cost)
            queries.append(rows + image * num_queries)
            classes.append(ids[columns])
            slots.append(columns)
        pairs.append([np.concatenate(part) for part in (queries, classes, slots)])
    stacked: npt.NDArray[np.int64] = np.asarray(pairs, dtype=np.int64).swapaxes(0, 1).copy()
    return stacked


class PointSampler:
    """Bilinear values of any number of maps of one size at the points that they share.

    The same numbers as :func:`sample_maps`, point by point: one weighted sum of four rows of
    neighbouring numbers each, which takes 60 % of the time on a CPU. Without a gradient.

    Args:
        points (Tensor): ``[P, 2]``.
        size (tuple[int, int]): Height and width of the maps in pixels.
    """

    def __init__(self, points: Tensor, size: tuple[int, int]) -> None:
        index, weights, inside = bilinear_neighbours(points, size)
        self._index = index.t().contiguous()  # [P, 4]
        self._weights = (weights * inside).t().contiguous()

    def __call__(self, maps: Tensor) -> Tensor:
        """Values ``[P, G]`` of ``maps[G, h, w]``."""
        rows = maps.detach().flatten(1).t().contiguous()  # [h * w, G]
        return F.embedding_bag(self._index, rows, per_sample_weights=self._weights, mode="sum")


def softplus_sum(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Sum of ``softplus(logits[P, ...])`` over the first dimension.

    softplus(x) = max(x, 0) - log(sigmoid(|x|)), and a sum of logarithms is the logarithm of a
    product. The factors lie in [1/2, 1], so that 64 of them fit a float32, and one logarithm does
    for 64 points.

    Args:
        logits (Tensor): ``[P, ...]``.
        probabilities (Tensor): Their sigmoid.
    """
    factors = (probabilities - 0.5).abs_().add_(0.5)  # sigmoid(|x|)
    missing = -len(factors) % 64
    if missing:
        factors = torch.cat([factors, factors.new_ones(missing, *factors.shape[1:])])
    logarithms = factors.view(-1, 64, *logits.shape[1:]).prod(1).log_()
    return logits.clamp(min=0).sum(0) - logarithms.sum(0)

"""The EoMT head: queries, joint blocks, mask and class predictions.

Shape legend: B images, Q queries, P prefix tokens (cls + registers), N = h*w patches,
T = Q + P + N tokens, C channels, K classes, H/W pixels, L joint blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank, get_world_size
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_eomt.models.joint_attention import run_joint_block
from mmseg_eomt.models.recompute import recomputed
from mmseg_eomt.models.step import StepRandom
from mmseg_eomt.models.upscale import (
    ACTIVATIONS,
    MaskMaps,
    UpscaleBlock,
    mask_logits,
    reduce_to_grid,
)
from mmseg_eomt.models.vit import EncoderState

Prediction = tuple[Tensor, Tensor]
"""Mask logits ``[B, Q, f*h, f*w]`` and class logits ``[B, Q, K + 1]`` (last: no object)."""


@MODELS.register_module()
class EoMTHead(BaseModule):  # type: ignore[misc]
    """Queries join the last L blocks of the encoder and turn into masks with classes.

    In training one prediction is made before each joint block, which masks the attention of that
    block, and one after the last; all are supervised. In testing only the last one is made, and
    nothing is masked (EoMT, sections 3.2 and 3.3 of arXiv 2503.19108).

    Args:
        num_classes (int): K, without "no object".
        num_queries (int): Q. Defaults to 100.
        num_upscale_blocks (int, optional): Doublings of the patch grid before masks are read.
            Defaults to ``max(1, ceil(log2(patch_size)) - 2)``: masks at a quarter of the input
            for a patch of 16 (official code, ``models/eomt.py``).
        activation (str): Of mask head and upscale blocks: ``'gelu'``, or ``'silu'`` as
            transformers has it in EoMT-DINOv3 models with gated MLPs. Defaults to ``'gelu'``.
        masked_attention (bool): Whether the joint blocks are masked in training. Without it only
            the last prediction exists. Defaults to True.
        recompute_upscale (bool): Whether the upscaled features are made again in the backward
            pass instead of kept. Saves memory, costs time. Defaults to False.
        loss_decode (dict): Config of the loss. Defaults to ``MaskClassificationLoss``.
        ignore_index (int): Label of pixels without a class. Defaults to 255.
        embed_dims (int, optional): C. The segmentor fills it in from the backbone.
        patch_size (int, optional): Of the backbone, likewise.
        num_joint_blocks (int, optional): L, likewise.
        init_cfg (dict, optional): Of mmengine's ``BaseModule``.

    Raises:
        ValueError: If a size is missing or not positive, or the activation is unknown.
    """

    align_corners = False

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        num_queries: int = 100,
        num_upscale_blocks: int | None = None,
        activation: str = "gelu",
        masked_attention: bool = True,
        recompute_upscale: bool = False,
        loss_decode: dict[str, Any] | None = None,
        ignore_index: int = 255,
        embed_dims: int | None = None,
        patch_size: int | None = None,
        num_joint_blocks: int | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_classes = _positive(
            "num_classes",
            num_classes,
            "tools/train.py takes it from the dataset; otherwise set model.decode_head.num_classes",
        )
        backbone = "EoMTSegmentor takes it from the backbone; otherwise set it in decode_head"
        self.embed_dims = _positive("embed_dims", embed_dims, backbone)
        patch_size = _positive("patch_size", patch_size, backbone)
        self.num_joint_blocks = _positive("num_joint_blocks", num_joint_blocks, backbone)
        self.num_queries = _positive("num_queries", num_queries, "set decode_head.num_queries")
        self.out_channels = self.num_classes
        self.ignore_index = ignore_index
        self.masked_attention = masked_attention
        self.recompute_upscale = recompute_upscale
        if num_upscale_blocks is None:
            num_upscale_blocks = max(1, math.ceil(math.log2(patch_size)) - 2)
        dims = self.embed_dims
        self.query = nn.Embedding(self.num_queries, dims)
        self.class_head = nn.Linear(dims, self.num_classes + 1)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}: choose one of {list(ACTIVATIONS)}.")
        self.activation = activation
        self.mask_head = nn.Sequential(
            nn.Linear(dims, dims),
            ACTIVATIONS[activation](),
            nn.Linear(dims, dims),
            ACTIVATIONS[activation](),
            nn.Linear(dims, dims),
        )
        self.upscale = nn.ModuleList(
            UpscaleBlock(dims, activation=activation) for _ in range(num_upscale_blocks)
        )
        self.loss_decode = MODELS.build(
            {
                "type": "MaskClassificationLoss",
                **(loss_decode or {}),
                "num_classes": self.num_classes,
                "ignore_index": ignore_index,
            }
        )
        self.mask_probs: list[float] = [1.0] * self.num_joint_blocks
        self.random = StepRandom()
        self._images_this_step = 0
        self._totals: Tensor | None = None
        self._place: tuple[int, int] | None = None
        # `compile_blocks` puts compiled ones in their place.
        self.run_joint_block: Callable[..., Tensor] = run_joint_block
        self.mask_logits: Callable[..., Tensor] = mask_logits

    # --- what hooks and the train loop set -------------------------------------------------

    def set_mask_probs(self, probabilities: Sequence[float]) -> None:
        """Sets with what probability a query is masked, per joint block.

        Args:
            probabilities (Sequence[float]): L numbers in [0, 1], of the host.

        Raises:
            ValueError: If their number or range is wrong.
        """
        probabilities = [float(value) for value in probabilities]
        if len(probabilities) != self.num_joint_blocks:
            raise ValueError(
                f"{len(probabilities)} mask probabilities for {self.num_joint_blocks} joint "
                "blocks: give one per joint block."
            )
        if not all(0.0 <= value <= 1.0 for value in probabilities):
            raise ValueError(f"Mask probabilities lie in [0, 1], found {probabilities}.")
        self.mask_probs = probabilities

    def set_step(self, step: int, seed: int) -> None:
        """Starts optimiser step ``step`` of a run with ``seed``: keys its random numbers."""
        self.random = StepRandom(seed=seed, step=step)
        self._images_this_step = 0
        self._totals = None

    def set_totals(self, totals: Tensor) -> None:
        """Sets the loss denominators ``[2]`` shared by the micro-batches of this step."""
        self._totals = totals

    @property
    def totals(self) -> Tensor | None:
        """What :meth:`set_totals` set for this step."""
        return self._totals

    def set_place(self, rank: int, world_size: int) -> None:
        """Makes this process stand for another one, whose step it runs again."""
        self._place = (rank, world_size)

    def count_targets(self, labels: Tensor) -> Tensor:
        """Loss denominators ``[2]`` that ``labels [B, H, W]`` stand for, additive over images."""
        counts: Tensor = self.loss_decode.count_targets(labels, num_queries=self.num_queries)
        return counts

    # --- predictions -----------------------------------------------------------------------

    def forward(self, state: EncoderState) -> Prediction:
        """The last prediction, with nothing masked.

        Args:
            state (EncoderState): Of the backbone: tokens ``[B, P + N, C]``.

        Returns:
            tuple[Tensor, Tensor]: Mask logits ``[B, Q, f*h, f*w]``, class logits ``[B, Q, K+1]``.
        """
        tokens = self._with_queries(state)
        for block in state.blocks:
            tokens = self._run(block, tokens, state, None)
        return self._predict(state.norm(tokens), state)

    def all_predictions(self, state: EncoderState) -> list[Prediction]:
        """Predictions before each joint block and after the last: L + 1 pairs.

        Without ``masked_attention`` only the last one. Block i is masked by prediction i, for
        each query with probability ``mask_probs[i]``.
        """
        return self._all_predictions(state, self._predict)

    def _all_predictions(
        self, state: EncoderState, predict: Callable[[Tensor, EncoderState], tuple[Any, Tensor]]
    ) -> list[Any]:
        """As :meth:`all_predictions`, in the form that ``predict(tokens, state)`` gives them."""
        if not self.masked_attention:
            tokens = self._with_queries(state)
            for block in state.blocks:
                tokens = self._run(block, tokens, state, None)
            return [predict(state.norm(tokens), state)]
        if len(state.blocks) != self.num_joint_blocks:
            raise ValueError(
                f"The backbone leaves {len(state.blocks)} joint blocks, the head was made for "
                f"{self.num_joint_blocks}: give both the same num_joint_blocks."
            )
        tokens = self._with_queries(state)
        predictions = []
        for index, block in enumerate(state.blocks):
            prediction = predict(state.norm(tokens), state)
            predictions.append(prediction)
            masks = prediction[0].logits if isinstance(prediction[0], MaskMaps) else prediction[0]
            tokens = self._run(block, tokens, state, self._patch_mask(masks, state, index))
        predictions.append(predict(state.norm(tokens), state))
        return predictions

    def _with_queries(self, state: EncoderState) -> Tensor:
        queries = self.query.weight[None].expand(state.tokens.shape[0], -1, -1)
        return torch.cat((queries.to(state.tokens.dtype), state.tokens), dim=1)

    def _run(
        self, block: nn.Module, tokens: Tensor, state: EncoderState, mask: Tensor | None
    ) -> Tensor:
        arguments: dict[str, Any] = {
            "num_queries": self.num_queries,
            "num_prefix_tokens": state.num_prefix_tokens,
            "rope": state.rope,
            "patch_mask": mask,
        }
        if state.recompute:
            return recomputed(self.run_joint_block, block, tokens, **arguments)
        return self.run_joint_block(block, tokens, **arguments)

    def _predict(self, tokens: Tensor, state: EncoderState) -> Prediction:
        """Reads masks and classes off normalised ``tokens [B, T, C]``."""
        queries = tokens[:, : self.num_queries]
        patches = tokens[:, self.num_queries + state.num_prefix_tokens :]
        mask_queries = self.mask_head(queries)
        if self.recompute_upscale and torch.is_grad_enabled():
            masks = recomputed(self.mask_logits, self.upscale, mask_queries, patches, state.grid)
        else:
            masks = self.mask_logits(self.upscale, mask_queries, patches, state.grid)
        return masks, self.class_head(queries)

    def _predict_for_loss(self, tokens: Tensor, state: EncoderState) -> tuple[Any, Tensor]:
        """As :meth:`_predict`, with mask logits that pass gradients on where the loss asks."""
        if self.mask_logits is not mask_logits:  # compiled: one graph for all queries
            return self._predict(tokens, state)
        queries = tokens[:, : self.num_queries]
        patches = tokens[:, self.num_queries + state.num_prefix_tokens :]
        masks = MaskMaps(
            self.upscale,
            self.mask_head(queries),
            patches,
            state.grid,
            recompute=self.recompute_upscale,
        )
        return masks, self.class_head(queries)

    def _patch_mask(self, mask_logits: Tensor, state: EncoderState, index: int) -> Tensor | None:
        """Where queries may look in block ``index``: boolean ``[B, Q, N]``, None for everywhere."""
        probability = self.mask_probs[index]
        if probability == 0.0:
            return None
        allowed = (reduce_to_grid(mask_logits.detach(), state.grid) > 0).flatten(2)
        if probability < 1.0:
            # Keyed by the place in the global batch, so that it does not depend on the world.
            draws = torch.stack(
                [
                    self.random.uniform(f"annealing/{index}/{row}", self.num_queries)
                    for row in self._global_rows(len(allowed))
                ]
            )
            allowed |= (draws > probability).to(allowed.device, non_blocking=True)[..., None]
        return allowed

    def _global_rows(self, batch: int) -> range:
        """Places of this process's images in the step's global batch."""
        rank, world = self._place or (get_rank(), get_world_size())
        first = self._images_this_step * world + rank
        return range(first, first + batch * world, world)

    # --- training and testing --------------------------------------------------------------

    def loss(
        self, state: EncoderState, data_samples: Sequence[Any], train_cfg: Any = None
    ) -> dict[str, Tensor]:
        """Losses of all predictions.

        Args:
            state (EncoderState): Of the backbone.
            data_samples (Sequence[SegDataSample]): Each with ``gt_sem_seg [1, H, W]``.
            train_cfg (dict, optional): Not used; part of mmseg's interface.

        Returns:
            dict[str, Tensor]: Names and scalars; those with "loss" in their name are summed.
        """
        labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).squeeze(1)
        height, width = (side * state.patch_size for side in state.grid)
        labels = F.pad(
            labels,
            (0, width - labels.shape[-1], 0, height - labels.shape[-2]),
            value=self.ignore_index,
        )
        predictions = self._all_predictions(state, self._predict_for_loss)
        losses: dict[str, Tensor] = self.loss_decode(
            predictions, labels, random=self.random, totals=self._totals
        )
        self._images_this_step += len(labels)
        return losses


def _positive(name: str, value: int | None, mend: str) -> int:
    if value is None or value < 1:
        raise ValueError(f"EoMTHead needs {name} >= 1, found {value}: {mend}.")
    return value

"""DINOv2's student and teacher, and one training step's losses.

Shape legend: B images of this process, L local views an image, N patches of a global view, C
channels, D channels of the bottleneck, M masked patches of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModel
from mmseg.registry import MODELS
from torch import Tensor, nn

from dinov2_pretraining.losses import Centre, koleo_loss, prototype_loss, sinkhorn_bias
from dinov2_pretraining.models.mask_token import stored_mask_token
from dinov2_pretraining.models.network import Network

CENTRINGS = ("softmax", "sinkhorn")


@MODELS.register_module()
class DINOv2Pretraining(BaseModel):  # type: ignore[misc]
    """Student, teacher and losses of DINOv2 (arXiv 2304.07193).

    The teacher is a moving average of the student: it gets no gradient, stays in eval mode and
    sees the global views without masks. ``PretrainScheduleHook`` sets :attr:`teacher_temp` before
    each step and calls :meth:`update_teacher` after it.

    Args:
        backbone (dict): Config of ``DINOv2``, ``DINOv3`` or ``TimmViT``; ``pretrained`` starts from
            released weights.
        head (dict): ``hidden_channels``, ``bottleneck_channels`` and ``num_prototypes`` of
            :class:`ProjectionHead`.
        ibot_head (dict, optional): The same for a head of the patches' own. Defaults to None:
            class tokens and patches share ``head``.
        drop_path_rate (float): Stochastic depth of the student. Defaults to 0.
        layer_scale (float, optional): Value that the layer scales of a backbone without
            ``pretrained`` start at. Defaults to None, the backbone's own.
        centring (str): 'softmax' (moving mean of the logits) or 'sinkhorn'. Defaults to 'softmax'.
        student_temp (float): Defaults to 0.1.
        dino_weight (float): Weight of the loss on class tokens. Defaults to 1.
        ibot_weight (float): Weight of the loss on masked patches. Defaults to 1.
        koleo_weight (float): Weight of the spread of class tokens. Defaults to 0.1.
        data_preprocessor (dict, optional): ``ViewPreprocessor``.
        init_cfg (dict, optional): Must be None; see ``pretrained`` of the backbone.

    Raises:
        ValueError: If an argument is none of these.
    """

    def __init__(
        self,
        *,
        backbone: dict[str, Any],
        head: dict[str, Any] | None = None,
        ibot_head: dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
        centring: str = "softmax",
        student_temp: float = 0.1,
        dino_weight: float = 1.0,
        ibot_weight: float = 1.0,
        koleo_weight: float = 0.1,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if centring not in CENTRINGS:
            raise ValueError(f"model.centring is {centring!r}: it must be one of {CENTRINGS}.")
        if student_temp <= 0:
            raise ValueError(f"model.student_temp is {student_temp}: it must be above 0.")
        self.student = Network(
            backbone, head=head, ibot_head=ibot_head, drop_path_rate=drop_path_rate
        )
        self.teacher = Network({**backbone, "pretrained": None}, head=head, ibot_head=ibot_head)
        if layer_scale is not None and backbone.get("pretrained") is None:
            _fill_layer_scales(self.student.encoder, layer_scale)
        self.student_temp = student_temp
        self.teacher_temp = 0.07  # set before each step
        self.centring = centring
        self.weights = {"dino": dino_weight, "ibot": ibot_weight, "koleo": koleo_weight}
        self.centres = nn.ModuleList()  # of class tokens, of patches
        if centring == "softmax":
            for own in (self.teacher.head, self.teacher.patch_head):
                self.centres.append(Centre(own.num_prototypes, dims=own.bottleneck_channels))
        # Class tokens [2*B, C] of the teacher in the last forward pass, for the collapse numbers.
        self.seen_features: Tensor | None = None
        self.teacher.requires_grad_(False)
        self._copy_student()

    # --- the step --------------------------------------------------------------------------

    def forward(
        self, inputs: dict[str, Tensor], data_samples: Any = None, mode: str = "loss"
    ) -> Any:
        """Losses of a micro-batch, or features of global views.

        Args:
            inputs (dict): As :class:`ViewPreprocessor` gives them.
            data_samples (list[dict], optional): Not used.
            mode (str): 'loss', or 'tensor' for the teacher's class tokens ``[2*B, C]``.

        Returns:
            dict | Tensor: Losses, and the teacher's entropies in nats.
        """
        views = inputs["global_views"]
        if mode == "tensor":
            return self.teacher.encoder(views)[0]
        if mode != "loss":
            raise ValueError(f"mode is {mode!r}: DINOv2Pretraining knows 'loss' and 'tensor'.")
        batch, num_local = len(views) // 2, 2 * len(inputs["local_views"]) // len(views)
        index = inputs["masked_index"]

        with torch.no_grad():
            self.seen_features, patches = self.teacher.global_tokens(views, index=index)
            targets = self.teacher.project(self.seen_features, patches)
            others = self.teacher.prototypes()
            biases = [self._bias(part, targets[part], others[part]) for part in (0, 1)]

        encoder = self.student.encoder
        global_classes, patches = self.student.global_tokens(
            views, index=index, masks=inputs["masks"]
        )
        classes = global_classes
        if num_local:
            local = encoder.norm(encoder.tokens(inputs["local_views"])[:, 0])
            classes = torch.cat((classes, local))
        answers = self.student.project(classes, patches)
        own = self.student.prototypes()

        on_classes = prototype_loss(
            answers[0].view(2 + num_local, batch, -1),
            targets[0].view(2, batch, -1),
            student_prototypes=own[0],
            teacher_prototypes=others[0],
            teacher_bias=biases[0],
            pairs=_pairs(num_local, views.device),
            row_weights=torch.full((batch,), 1.0 / batch, device=views.device),
            student_temp=self.student_temp,
            teacher_temp=self.teacher_temp,
        )
        on_patches = prototype_loss(
            answers[1][None],
            targets[1][None],
            student_prototypes=own[1],
            teacher_prototypes=others[1],
            teacher_bias=biases[1],
            pairs=torch.ones(1, 1, device=views.device),
            row_weights=inputs["masked_weight"],
            student_temp=self.student_temp,
            teacher_temp=self.teacher_temp,
        )
        spread = sum(koleo_loss(view) for view in global_classes.chunk(2))
        return {
            "loss_dino": self.weights["dino"] * on_classes.loss,
            "loss_ibot": self.weights["ibot"] * on_patches.loss,
            "loss_koleo": self.weights["koleo"] * spread,
            "teacher_entropy": on_classes.entropy,
            "teacher_patch_entropy": on_patches.entropy,
        }

    def _bias(self, part: int, rows: Tensor, prototypes: Tensor) -> Tensor:
        """The teacher's bias for ``rows [R, D]`` of class tokens (0) or patches (1)."""
        if self.centring == "sinkhorn":
            return sinkhorn_bias(rows, prototypes, temp=self.teacher_temp)
        centre: Any = self.centres[part]
        bias: Tensor = centre.bias(self.teacher_temp)
        if self.training:
            centre.see(rows)  # for the next step
        return bias

    # --- the teacher -----------------------------------------------------------------------

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Ends a step: moves the centres, then the teacher towards the student.

        ``teacher = momentum * teacher + (1 - momentum) * student``, in float32, for every
        parameter. All processes call it together.

        Args:
            momentum (float): Of this step.
        """
        for centre, prototypes in zip(self.centres, self.teacher.prototypes(), strict=False):
            centre.update(prototypes)  # type: ignore[operator]
        old: list[Tensor] = list(self.teacher.parameters())
        new: list[Tensor] = list(self.student.parameters())
        torch._foreach_mul_(old, momentum)
        torch._foreach_add_(old, new, alpha=1.0 - momentum)

    def train(self, mode: bool = True) -> DINOv2Pretraining:
        """Sets the mode; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def init_weights(self) -> None:
        """Loads the backbone's ``pretrained`` into student and teacher, with its mask token."""
        encoder = self.student.encoder
        encoder.backbone.init_weights()
        if encoder.backbone.pretrained is not None:
            token = stored_mask_token(encoder.backbone)
            if token is not None:
                encoder.mask_token.data.copy_(token)
        self._copy_student()
        self._is_init = True

    def _copy_student(self) -> None:
        self.teacher.load_state_dict(self.student.state_dict())


def _pairs(num_local: int, device: torch.device) -> Tensor:
    """Weights ``[2 + L, 2]``: every student view against each global view but itself, evenly."""
    pairs = torch.ones(2 + num_local, 2)
    pairs[0, 0] = pairs[1, 1] = 0.0
    return (pairs / pairs.sum()).to(device, non_blocking=True)


def _fill_layer_scales(encoder: nn.Module, value: float) -> None:
    for name, parameter in encoder.named_parameters():
        if name.rsplit(".", 1)[-1] in ("gamma", "gamma_1", "gamma_2"):
            nn.init.constant_(parameter, value)

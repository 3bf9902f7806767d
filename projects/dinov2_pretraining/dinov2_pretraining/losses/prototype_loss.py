"""Cross-entropy between what teacher and student say about prototypes, in bounded memory.

Shape legend: S student views, T teacher views, R rows (images or patches), D channels, K
prototypes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits at once, over all student views of some rows: 64 MiB in float32, of which a handful lives
# at a time. More gains no speed on a GPU, less costs kernel launches.
LOGITS_AT_ONCE = 2**24


class PrototypeLoss(NamedTuple):
    """Result of :func:`prototype_loss`.

    Attributes:
        loss (Tensor): Scalar.
        entropy (Tensor): Scalar without gradient: the mean entropy of the teacher's rows, in nats.
    """

    loss: Tensor
    entropy: Tensor


def prototype_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    student_prototypes: Tensor,
    teacher_prototypes: Tensor,
    teacher_bias: Tensor,
    pairs: Tensor,
    row_weights: Tensor,
    student_temp: float,
    teacher_temp: float,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> PrototypeLoss:
    """DINO's and iBOT's loss (arXiv 2104.14294, 2111.07832).

    ``sum_r row_weights[r] * sum_st pairs[s, t] * H(p[t, r], q[s, r])``, where H is cross-entropy,
    ``q = softmax(student @ student_prototypes.T / student_temp)`` and
    ``p = softmax(teacher @ teacher_prototypes.T / teacher_temp + teacher_bias)``; the bias carries
    the centring. Logits exist for some rows at a time: gradients are taken in the forward pass,
    while the logits are there, so that nothing is computed twice and none of ``[R, K]`` is kept.

    Args:
        student (Tensor): ``[S, R, D]``, normalised.
        teacher (Tensor): ``[T, R, D]``, normalised; gets no gradient.
        student_prototypes (Tensor): ``[K, D]``, normalised.
        teacher_prototypes (Tensor): ``[K, D]``, normalised; gets no gradient.
        teacher_bias (Tensor): ``[K]``, of :mod:`centring`; gets no gradient.
        pairs (Tensor): ``[S, T]``, weight of each pair of views.
        row_weights (Tensor): ``[R]``.
        student_temp (float): 0.1 in DINOv2.
        teacher_temp (float): At this step.
        logits_at_once (int): Bounds the memory. Defaults to 2 ** 24.

    Returns:
        PrototypeLoss: Loss and entropy, float32.
    """
    loss, entropy = _PrototypeLoss.apply(
        student,
        student_prototypes,
        teacher,
        teacher_prototypes,
        teacher_bias,
        pairs.float(),
        row_weights.float(),
        (student_temp, teacher_temp, logits_at_once),
    )
    return PrototypeLoss(loss, entropy)


def teacher_logits(teacher: Tensor, prototypes: Tensor, temp: float) -> Tensor:
    """``teacher [..., D] @ prototypes.T / temp`` as ``[..., K]`` in float32."""
    logits = (teacher @ prototypes.t()).float()
    return logits.div_(temp)


def logit_dtype(device: torch.device) -> torch.dtype:
    """What logits are multiplied in: float16 under autocast on CUDA, else float32.

    Rows and prototypes have length 1, so float16 cannot overflow, and its rounding, 8 times finer
    than bfloat16's, is what the division by a temperature of 0.04 needs.
    """
    half = device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return torch.float16 if half else torch.float32


def rows_at_once(views: int, prototypes: int, logits: int) -> int:
    """How many rows of ``views * prototypes`` logits fit into ``logits``, at least one."""
    return max(1, logits // max(1, views * prototypes))


class _PrototypeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        student_prototypes: Tensor,
        teacher: Tensor,
        teacher_prototypes: Tensor,
        bias: Tensor,
        pairs: Tensor,
        row_weights: Tensor,
        settings: tuple[float, float, int],
    ) -> tuple[Tensor, Tensor]:
        student_temp, teacher_temp, logits = settings
        views, rows, _ = student.shape
        ctx.dtypes = student.dtype, student_prototypes.dtype
        # Probabilities times small weights would vanish in float16: gradients take bfloat16.
        dtype = logit_dtype(student.device)
        grad_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        with torch.autocast(student.device.type, enabled=False):
            prototypes = student_prototypes.to(dtype)
            grad_prototypes = prototypes if grad_dtype == dtype else student_prototypes.bfloat16()
            others = teacher_prototypes.to(dtype)
            mass = pairs.sum(dim=1)[:, None, None]  # [S, 1, 1]
            loss = pairs.new_zeros(())
            entropy = pairs.new_zeros(())
            d_student = torch.zeros_like(student, dtype=torch.float32) if wanted else None
            d_prototypes = (
                torch.zeros_like(student_prototypes, dtype=torch.float32) if wanted else None
            )
            step = rows_at_once(views, len(prototypes), logits)
            for begin in range(0, rows, step):
                part = slice(begin, begin + step)
                weight = row_weights[part][None, :, None]  # [1, r, 1]
                p = teacher_logits(teacher[:, part].to(dtype), others, teacher_temp).add_(bias)
                normaliser = p.logsumexp(dim=-1, keepdim=True)
                log_p = p.sub_(normaliser)  # [T, r, K]
                p = log_p.exp()
                entropy -= (p * log_p).sum()
                del log_p
                # [S, r, K], the mixture of teachers that each student view is held against
                target = torch.tensordot(pairs, p, dims=1)
                del p
                q = (student[:, part].to(dtype) @ prototypes.t()).float().div_(student_temp)
                normaliser = q.logsumexp(dim=-1, keepdim=True)
                log_q = q.sub_(normaliser)
                loss -= ((target * log_q).sum(dim=-1, keepdim=True) * weight).sum()
                if d_student is None or d_prototypes is None:
                    continue
                gradient = log_q.exp_().mul_(mass).sub_(target)
                gradient = gradient.mul_(weight / student_temp).to(grad_dtype)
                d_student[:, part] = (gradient @ grad_prototypes).float()
                d_prototypes += (
                    gradient.flatten(0, 1).t() @ student[:, part].to(grad_dtype).flatten(0, 1)
                ).float()
            entropy /= max(1, teacher.shape[0] * rows)
        if wanted:
            ctx.save_for_backward(d_student, d_prototypes)
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_student, d_prototypes = ctx.saved_tensors
        student_dtype, prototypes_dtype = ctx.dtypes
        return (
            (d_student * d_loss).to(student_dtype),
            (d_prototypes * d_loss).to(prototypes_dtype),
            *(None,) * 6,
        )

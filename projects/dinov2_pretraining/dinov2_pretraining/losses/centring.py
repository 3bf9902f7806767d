"""What keeps the teacher from saying the same about every image: centring as a bias per prototype.

Both ways end in ``softmax(logits / temp + bias)``. Softmax centring (DINO, arXiv 2104.14294) takes
``bias = -centre / temp``. Sinkhorn-Knopp (SwAV, arXiv 2006.09882) scales rows and columns of
``exp(logits / temp)`` in turns; the scales of columns are the bias, those of rows the softmax. So
neither needs the whole matrix at once.

Shape legend: R rows (images or patches of this process), D channels, K prototypes.
"""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from dinov2_pretraining.losses.prototype_loss import (
    LOGITS_AT_ONCE,
    logit_dtype,
    rows_at_once,
    teacher_logits,
)

CENTRE_MOMENTUM = 0.9  # facebookresearch/dinov2
SINKHORN_ITERATIONS = 3  # facebookresearch/dinov2


class Centre(nn.Module):
    """Moving mean of the teacher's logits over all rows of all processes.

    A step uses the mean of the steps before it. The mean of logits is the product of the mean row
    with the prototypes, so no logits are needed, and one exchange of D numbers a step is enough.

    Args:
        num_prototypes (int): K.
        dims (int): D.
        momentum (float): Share of the old centre. Defaults to 0.9.
    """

    centre: Tensor
    _sum: Tensor

    def __init__(
        self, num_prototypes: int, *, dims: int, momentum: float = CENTRE_MOMENTUM
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(num_prototypes))
        # Rows since the last update, and their number: between steps both are zero.
        self.register_buffer("_sum", torch.zeros(dims + 1), persistent=False)

    def bias(self, temp: float) -> Tensor:
        """Bias ``[K]`` of the teacher's softmax at this temperature."""
        return self.centre / -temp

    @torch.no_grad()
    def see(self, rows: Tensor) -> None:
        """Notes rows ``[R, D]`` of a micro-batch for the next :meth:`update`."""
        self._sum[:-1] += rows.float().sum(dim=0)
        self._sum[-1] += len(rows)

    @torch.no_grad()
    def update(self, prototypes: Tensor) -> None:
        """Moves the centre by what was seen since the last call; all processes call it together.

        Args:
            prototypes (Tensor): ``[K, D]``, those that the rows were compared with.
        """
        total = self._sum.clone()
        self._sum.zero_()
        all_reduce(total)
        count = total[-1]
        mean = prototypes.float() @ (total[:-1] / count.clamp(min=1))
        moved = self.centre * self.momentum + mean * (1 - self.momentum)
        # A batch without a masked patch leaves the patches' centre where it was.
        self.centre.copy_(torch.where(count > 0, moved, self.centre))


@torch.no_grad()
def sinkhorn_bias(
    rows: Tensor,
    prototypes: Tensor,
    *,
    temp: float,
    iterations: int = SINKHORN_ITERATIONS,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Bias with which the teacher's softmax is the result of Sinkhorn-Knopp.

    Each iteration makes the columns (prototypes) of ``exp(logits / temp)`` sum to the same over the
    rows of all processes, then the rows to one. All processes call it together; a process may have
    no row.

    Args:
        rows (Tensor): ``[R, D]``, normalised.
        prototypes (Tensor): ``[K, D]``, normalised.
        temp (float): The teacher's temperature.
        iterations (int): Defaults to 3.
        logits_at_once (int): Bounds the memory. Defaults to 2 ** 24.

    Returns:
        Tensor: ``[K]``, float32, up to a constant that the softmax does not see.
    """
    count = len(prototypes)
    dtype = logit_dtype(rows.device)
    bias = torch.zeros(count, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        others = prototypes.to(dtype)
        step = rows_at_once(1, count, logits_at_once)
        for iteration in range(iterations):
            columns = torch.zeros(count, device=rows.device)
            for begin in range(0, len(rows), step):
                logits = teacher_logits(rows[begin : begin + step].to(dtype), others, temp)
                if iteration == 0:
                    # No logit exceeds 1 / temp, so nothing overflows.
                    columns += logits.sub_(1 / temp).exp_().sum(dim=0)
                else:
                    columns += logits.add_(bias).softmax(dim=-1).sum(dim=0)
            all_reduce(columns)
            # No row at all: nothing to balance. A column that no row touches stays finite.
            bias -= torch.where(columns > 0, columns, columns.new_tensor(1e-30)).log()
    return bias - bias.max()

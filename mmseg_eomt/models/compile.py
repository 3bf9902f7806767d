"""``torch.compile`` of a segmentor, block by block."""

from __future__ import annotations

from typing import Any

import torch

from mmseg_eomt.models.layers import mask_logits, run_joint_block

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

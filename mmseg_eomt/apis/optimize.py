"""One call that makes a trained model fast: `optimize_for_inference(model, dtype="bf16")`."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from mmengine.logging import print_log

from mmseg_eomt.apis.inference import SegmentationModel
from mmseg_eomt.models.eomt_segmentor import EoMTSegmentor
from mmseg_eomt.models.joint_attention import fold_weights

DTYPES = {None: torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
COMPILE = (None, "default", "max-autotune")

Model = TypeVar("Model", SegmentationModel, EoMTSegmentor)


def optimize_for_inference(
    model: Model,
    *,
    dtype: str | None = None,
    compile: str | None = None,
    channels_last: bool = False,
    cuda_graphs: bool | None = None,
) -> Model:
    """Prepare a trained model for predictions only, in place.

    Always: no gradients, eval mode, layer scales folded into the projections before them, biases
    of query, key and value joined. These give the same predictions up to float32 rounding. The
    model's weights are no longer those of its file: do not train or save it afterwards.

    Args:
        model: From `load_model`, or its segmentor.
        dtype: None keeps float32; 'bf16' or 'fp16' turns the network to half precision. Class
            probabilities and the sums of scores stay in float32.
        compile: None, or the mode in which `torch.compile` compiles the network: 'default' or
            'max-autotune'. Compilation happens at the first prediction, and again for each other
            number or size of windows in a forward pass.
        channels_last: Whether the weights of convolutions lie channels-last.
        cuda_graphs: Whether a compiled network is replayed as a CUDA graph. None does so on CUDA.

    Returns:
        The same model. Its segmentor's attribute `optimizations` and the log say what was done.

    Raises:
        ValueError: If an argument is none of these, or CUDA graphs are asked for without CUDA or
            without `compile`, or the model is optimised already.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: None (float32), 'bf16', 'fp16'.")
    if compile not in COMPILE:
        raise ValueError(f"compile is {compile!r}; allowed: None, 'default', 'max-autotune'.")
    segmentor: Any = model.segmentor if isinstance(model, SegmentationModel) else model
    if getattr(segmentor, "optimizations", None):
        raise ValueError("The model is optimised already; load it again to optimise it otherwise.")
    device = next(segmentor.parameters()).device
    if cuda_graphs is None:
        cuda_graphs = compile is not None and device.type == "cuda"
    if cuda_graphs and (compile is None or device.type != "cuda"):
        raise ValueError(
            f"cuda_graphs=True with compile={compile!r} on {device}: CUDA graphs are made of a "
            "compiled network on a GPU. Give compile='default' and load the model on 'cuda'."
        )
    segmentor.eval().requires_grad_(False)
    fold_weights(segmentor.backbone.vit)
    done = ["layer scales folded, biases joined"]
    if dtype is not None:
        for part in (segmentor.backbone, segmentor.decode_head):
            part.to(DTYPES[dtype])
        done.append(f"network in {dtype}")
    if channels_last:
        segmentor.to(memory_format=torch.channels_last)
        done.append("convolutions channels-last")
    if compile is not None:
        mode = _mode(compile, cuda_graphs=cuda_graphs)
        # Static shapes: windows of one size are what the kernels are made for.
        segmentor.network = torch.compile(
            segmentor.network, dynamic=False, fullgraph=True, mode=mode
        )
        done.append(f"network compiled ({compile}{', CUDA graphs' if cuda_graphs else ''})")
    segmentor.optimizations = tuple(done)
    print_log(f"optimize_for_inference on {device}: {'; '.join(done)}.", logger="current")
    return model


def _mode(compile: str, *, cuda_graphs: bool) -> str:
    """The name that `torch.compile` has for it."""
    if compile == "default":
        return "reduce-overhead" if cuda_graphs else "default"
    return "max-autotune" if cuda_graphs else "max-autotune-no-cudagraphs"

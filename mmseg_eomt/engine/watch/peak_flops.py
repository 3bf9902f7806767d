"""What a device can compute at most, from its maker's data sheets."""

from __future__ import annotations

import re

import torch

# Dense TFLOP/s with sums in float32, which is how PyTorch multiplies matrices; sheets often print
# those with sparsity, which are twice as many. Names are those the driver tells, matched whole:
# slices (MIG), laptop and export versions are other devices.
# Sources: nvidia.com/en-us/data-center/{h100,h200,a100,a10,a30,a40,l4,l40,l40s,v100,tesla-t4}
# and the data sheets of RTX A6000 and RTX 6000 Ada; of GeForce the architecture's white paper
# (GA102, appendix A; Ada, appendix A).
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"H100 80GB HBM3|H200|GH200 \d+GB", {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9}),
    (r"H[12]00 NVL", {"bf16": 835.5, "tf32": 417.5, "fp32": 60.0}),
    (r"H100 PCIe", {"bf16": 756.0, "tf32": 378.0, "fp32": 51.0}),
    (
        r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe",
        {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
    ),
    (r"A10", {"bf16": 125.0, "tf32": 62.5, "fp32": 31.2}),
    (r"A30", {"bf16": 165.0, "tf32": 82.0, "fp32": 10.3}),
    (r"A40", {"bf16": 149.7, "tf32": 74.8, "fp32": 37.4}),
    (r"L4", {"bf16": 121.0, "tf32": 60.0, "fp32": 30.3}),
    (r"L40", {"bf16": 181.0, "tf32": 90.5, "fp32": 90.5}),
    (r"L40S", {"bf16": 362.0, "tf32": 183.0, "fp32": 91.6}),
    (r"RTX A6000", {"bf16": 154.8, "tf32": 77.4, "fp32": 38.7}),
    (r"RTX 6000 Ada Generation", {"bf16": 364.2, "tf32": 182.1, "fp32": 91.1}),
    (r"GeForce RTX 3090", {"bf16": 71.0, "tf32": 35.6, "fp32": 35.6}),
    (r"GeForce RTX 4090", {"bf16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    # Before Ampere there is neither bf16 nor tf32.
    (r"V100-SXM2-\d+GB", {"fp16": 125.0, "fp32": 15.7}),
    (r"V100-PCIE-\d+GB", {"fp16": 112.0, "fp32": 14.0}),
    (r"T4", {"fp16": 65.0, "fp32": 8.1}),
)


def peak_tflops(name: str, precision: str) -> float | None:
    """The most TFLOP/s of a device.

    Args:
        name (str): As ``torch.cuda.get_device_name`` gives it.
        precision (str): 'bf16', 'fp16', 'tf32' or 'fp32'.

    Returns:
        float: None if the table does not have the device or the precision.
    """
    for pattern, peaks in _PEAKS:
        if re.fullmatch(rf"(?:NVIDIA |Tesla )*(?:{pattern})", name):
            # From Ampere on both have the same rate.
            return peaks.get(precision, peaks.get("bf16") if precision == "fp16" else None)
    return None


def peak_of(device: torch.device, precision: str) -> float | None:
    """:func:`peak_tflops` of this process's device; None for anything that is no CUDA device.

    Args:
        device (torch.device): Where the model is.
        precision (str): Of training: 'bf16', 'fp16' or 'fp32', which is tf32 where PyTorch may
            use it.
    """
    if device.type != "cuda":
        return None
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        precision = "tf32"
    return peak_tflops(torch.cuda.get_device_name(device), precision)

"""From mask and class logits to the label map of one large image, against transformers.

Both get the same logits of the windows of one image (short side 512). The logits are made, not
predicted: "regions" is smooth masks with sure classes, as trained models give them; "noise" has a
border at nearly every pixel, the worst case for our way.

    python tools/benchmarks/postprocess.py --device cpu --threads 2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from common import (
    DTYPES,
    MIB,
    OURS,
    REFERENCE,
    Row,
    interleave,
    machine,
    make_parser,
    peak_memory,
    print_table,
    set_up,
)
from torch import Tensor

MEMORY = 256 * MIB  # the segmentor's default of test_cfg.score_memory


def make_logits(kind: str, windows: int, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Mask logits ``[n, Q, S/4, S/4]`` and class logits ``[n, Q, K + 1]``."""
    torch.manual_seed(0)
    side = args.short_side // 4
    coarse = side if kind == "noise" else max(2, side // 16)
    masks = F.interpolate(5 * torch.randn(windows, args.queries, coarse, coarse), (side, side))
    if kind == "regions":
        small = 5 * torch.randn(windows, args.queries, coarse, coarse)
        masks = F.interpolate(small, (side, side), mode="bicubic")
    classes = torch.randn(windows, args.queries, args.classes + 1)
    classes.scatter_(2, torch.randint(args.classes, (windows, args.queries, 1)), 8.0)
    dtype = DTYPES[args.dtype]
    return masks.to(args.device, dtype), classes.to(args.device, dtype)


def prepare(name: str, kind: str, args: argparse.Namespace) -> Callable[[int], Tensor]:
    """Post-processing by one contestant as a function of the turn."""
    from mmseg_eomt.images.windows import cover

    side, size = args.short_side, (args.height, args.width)
    # transformers rounds the long side down; taken for both, so that label maps can be compared.
    canvas = tuple(side * length // min(size) for length in size)
    window, starts = cover(canvas, (side, side))
    masks, classes = make_logits(kind, len(starts), args)
    if name == OURS:
        return our_way(masks, classes, starts, window, canvas, size)
    return their_way(masks, classes, starts, side, size)


def our_way(
    masks: Tensor, classes: Tensor, starts: Any, window: Any, canvas: Any, size: Any
) -> Any:
    """As the segmentor does it."""
    from mmseg_eomt.models.window_scores import View, label_map

    def run(_: int) -> Tensor:
        probabilities = classes.float().softmax(-1)[..., :-1].transpose(1, 2)
        view = View(masks, probabilities, tuple(starts), window, window, canvas)
        return label_map([view], size, memory=MEMORY)

    return run


def their_way(masks: Tensor, classes: Tensor, starts: Any, side: int, size: Any) -> Any:
    """``EomtImageProcessor.post_process_semantic_segmentation``."""
    from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

    edges = {"shortest_edge": side, "longest_edge": None}
    processor = EomtImageProcessorPil(size=edges, do_split_image=True)
    offsets = [(0, max(start), max(start) + side) for start in starts]
    outputs = SimpleNamespace(
        masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=offsets
    )

    def run(_: int) -> Tensor:
        result: Tensor = processor.post_process_semantic_segmentation(outputs, [size], size=edges)[
            0
        ]
        return result

    return run


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--height", type=int, default=1500, help="of the image (1500)")
    parser.add_argument("--width", type=int, default=2000, help="(2000)")
    parser.add_argument("--short-side", type=int, default=512, help="of the windows (512)")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--kinds", nargs="+", default=["regions", "noise"], help="of logits")
    args = parser.parse_args(arguments)
    if args.quick:
        args.height, args.width, args.short_side, args.queries, args.classes = 90, 120, 64, 8, 6
    return args


def main(arguments: list[str] | None = None) -> dict[str, list[Row]]:
    """Measures and prints a table for each kind of logits."""
    args = parse(arguments)
    set_up(args)
    print(machine(args.device, args.threads))
    results = {}
    for kind in args.kinds:
        work = {name: prepare(name, kind, args) for name in (REFERENCE, OURS)}
        with torch.inference_mode():
            labels = [run(0) for run in work.values()]
            times = interleave(work, repeats=args.repeats, device=args.device, warm_up=0)
        agreement = (labels[0] == labels[1]).float().mean().item()
        rows = [
            Row(
                name,
                times[name],
                peak_memory(prepare, *(name, kind, args), device=args.device, threads=args.threads),
                work=1,
            )
            for name in work
        ]
        print_table(
            f"post-processing of one image of {args.width}x{args.height}, {args.classes} classes, "
            f"{args.queries} queries, windows of {args.short_side}, {kind}, {args.dtype}",
            rows,
            note=f"Label maps agree on {agreement:.4%} of the pixels. Peaks include the logits.",
        )
        results[kind] = rows
    return results


if __name__ == "__main__":
    main()

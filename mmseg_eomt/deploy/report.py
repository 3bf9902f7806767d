"""What an export and its verification came to, for people."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmseg_eomt.deploy.limits import LIMITS
from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.verify import Comparison


@dataclasses.dataclass(frozen=True)
class MiouPair:
    """mIoU in percent on a validation set, at the images' own sizes.

    Args:
        reference: Of PyTorch in float32.
        exported: Of the exported model.
        images: How many were counted.
        max_drop: By how much the exported model may be worse.
    """

    reference: float
    exported: float
    images: int
    max_drop: float

    @property
    def drop(self) -> float:
        """By how much the exported model is worse."""
        return self.reference - self.exported

    @property
    def failed(self) -> bool:
        """Whether it is worse by more than allowed. (A NaN is.)"""
        return not self.drop <= self.max_drop


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """An exported model.

    Args:
        path: The ONNX file.
        metadata: What it says about itself.
        comparisons: Against PyTorch in float32; empty if it was not verified.
        notes: What a user should know about these.
        miou: mIoU of both; None without a dataset.
    """

    path: Path
    metadata: DeployMetadata
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    miou: MiouPair | None = None

    def failures(self) -> tuple[Comparison, ...]:
        """Comparisons outside the limits of the precision."""
        limits = LIMITS[self.metadata.precision]
        return tuple(item for item in self.comparisons if not item.within(limits))


def print_result(result: ExportResult, console: Console) -> None:
    """Print the comparisons as a table, and the notes."""
    limits = LIMITS[result.metadata.precision]
    if result.comparisons:
        table = Table(
            "batch", "height x width", "pictures", "classes", "same label", "largest", "mean", "",
            title=f"ONNX Runtime ({result.metadata.precision}) against PyTorch (fp32)",
        )  # fmt: skip
        for item in result.comparisons:
            table.add_row(
                str(item.batch),
                f"{item.size[0]} x {item.size[1]}",
                str(item.pictures),
                str(item.classes),
                f"{item.agreement:.4%}",
                _number(item.largest),
                _number(item.mean),
                "ok" if item.within(limits) else "FAILED",
            )
        table.add_row(
            "limit", "", "", "", f"{limits.agreement:.2%}", f"{limits.largest:g}",
            f"{limits.mean:g}", "",
        )  # fmt: skip
        console.print(table)
    if result.miou is not None:
        pair = result.miou
        console.print(
            f"mIoU on {pair.images} validation images: PyTorch {pair.reference:.2f}, ONNX Runtime "
            f"({result.metadata.precision}) {pair.exported:.2f} ({-pair.drop:+.2f}; "
            f"allowed: {-pair.max_drop:+.2f}){' FAILED' if pair.failed else ''}.",
            highlight=False,
        )
    for note in result.notes:
        console.print(note, highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"

"""DINOv2's step written down from the paper, view by view and pair by pair, in float64.

Nothing of this project is used: the backbone is transformers', losses, centring, schedules,
parameter groups and AdamW are spelt out. Slow and plain on purpose.

Shape legend: C channels, D channels of the bottleneck, K prototypes, N patches.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

EPSILON = 1e-8  # of KoLeo


class Head(nn.Module):
    """Three layers and the prototypes."""

    def __init__(self, channels: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(channels, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, bottleneck)]
        )
        self.last = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, token: Tensor) -> Tensor:
        """Logits ``[K]`` of one token ``[C]``."""
        first, second, third = self.layers
        token = third(nn.functional.gelu(second(nn.functional.gelu(first(token)))))
        token = token / token.norm()
        return torch.stack([token @ (row / row.norm()) for row in self.last])


class Side(nn.Module):
    """The student, or the teacher."""

    def __init__(self, vit: nn.Module, head: Head, patch_head: Head | None) -> None:
        super().__init__()
        self.vit, self.head = vit, head
        self.patch_head = head if patch_head is None else patch_head

    def see(self, view: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class token ``[C]`` and patches ``[N, C]`` of one view ``[3, S, S]``."""
        hidden = None if mask is None else mask[None]
        tokens = self.vit(view[None], bool_masked_pos=hidden).last_hidden_state[0]
        return tokens[0], tokens[1 + self.vit.config.num_register_tokens :]


@dataclass
class Settings:
    """Of the losses and the teacher."""

    centring: str = "softmax"
    student_temp: float = 0.1
    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    centres: dict[str, Tensor] = field(default_factory=dict)


class Method:
    """Student, teacher and one step of both."""

    def __init__(self, student: Side, settings: Settings) -> None:
        self.student, self.settings = student.double(), settings
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        for name, head in (("class", student.head), ("patch", student.patch_head)):
            settings.centres[name] = torch.zeros(len(head.last), dtype=torch.float64)

    def losses(self, batch: dict[str, Any], teacher_temp: float) -> dict[str, Tensor]:
        """The three losses of B images.

        Args:
            batch (dict): ``globals`` ``[2][B]`` and ``locals`` ``[L][B]`` of views, ``masks``
                ``[2][B]`` of bool ``[N]``.
            teacher_temp (float): The teacher's temperature.
        """
        images = range(len(batch["globals"][0]))
        with torch.no_grad():
            seen = {
                (v, i): self.teacher.see(batch["globals"][v][i]) for v in (0, 1) for i in images
            }
            class_logits = {key: self.teacher.head(tokens[0]) for key, tokens in seen.items()}
            hidden = [
                (v, i, int(n))
                for v in (0, 1)
                for i in images
                for n in batch["masks"][v][i].nonzero()
            ]
            patch_logits = {
                (v, i, n): self.teacher.patch_head(seen[v, i][1][n]) for v, i, n in hidden
            }
            wanted = self._answers("class", class_logits, teacher_temp)
            wanted_patches = self._answers("patch", patch_logits, teacher_temp)

        answers = {
            (v, i): self.student.see(batch["globals"][v][i], batch["masks"][v][i])
            for v in (0, 1)
            for i in images
        }
        local = {
            (2 + v, i): self.student.see(view)
            for v, views in enumerate(batch["locals"])
            for i, view in enumerate(views)
        }
        said = {key: self.student.head(t[0]) for key, t in {**answers, **local}.items()}
        pairs = [(v, s, i) for v, i in wanted for s in range(2 + len(batch["locals"])) if s != v]
        dino = sum(self._cross_entropy(wanted[v, i], said[s, i]) for v, s, i in pairs) / len(pairs)

        ibot = torch.zeros((), dtype=torch.float64)
        for v, i, n in hidden:
            share = 1 / int(batch["masks"][v][i].sum()) / len(seen)
            logits = self.student.patch_head(answers[v, i][1][n])
            ibot = ibot + share * self._cross_entropy(wanted_patches[v, i, n], logits)

        koleo = sum(_koleo([answers[v, i][0] for i in images]) for v in (0, 1))
        weights = self.settings
        return {
            "loss_dino": weights.dino * dino,
            "loss_ibot": weights.ibot * ibot,
            "loss_koleo": weights.koleo * koleo,
        }

    def move_teacher(self, momentum: float) -> None:
        """Moves the teacher's weights towards the student's."""
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.data = momentum * old.data + (1 - momentum) * new.data

    def _answers(self, name: str, logits: dict[Any, Tensor], temp: float) -> dict[Any, Tensor]:
        """The teacher's probabilities; with softmax centring the centre moves for the next step."""
        rows = torch.stack(list(logits.values()))
        if self.settings.centring == "sinkhorn":
            table = (rows / temp).exp()
            table = table / table.sum()
            for _ in range(3):
                table = table / table.sum(0, keepdim=True) / table.shape[1]
                table = table / table.sum(1, keepdim=True) / table.shape[0]
            found = table * table.shape[0]
        else:
            centre = self.settings.centres[name]
            found = ((rows - centre) / temp).softmax(-1)
            self.settings.centres[name] = 0.9 * centre + 0.1 * rows.mean(0)
        return dict(zip(logits, found, strict=True))

    def _cross_entropy(self, wanted: Tensor, logits: Tensor) -> Tensor:
        return -(wanted * (logits / self.settings.student_temp).log_softmax(-1)).sum()


def _koleo(tokens: list[Tensor]) -> Tensor:
    """Minus the mean logarithm of the distance to the nearest of the others."""
    rows = [token / token.norm() for token in tokens]
    logs = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        near = max(others, key=lambda other, row=row: float(row.detach() @ other.detach()))
        logs.append(((row - near + EPSILON).norm() + EPSILON).log())
    return -sum(logs) / len(logs)


def make_vit(arch: dict[str, Any], *, image_size: int, layer_scale: float) -> nn.Module:
    """transformers' DINOv2 of these sizes, with values that are no one's defaults."""
    config = Dinov2WithRegistersConfig(
        hidden_size=arch["embed_dims"],
        num_hidden_layers=arch["depth"],
        num_attention_heads=arch["num_heads"],
        patch_size=arch["patch_size"],
        num_register_tokens=arch["num_registers"],
        image_size=image_size,
        layerscale_value=layer_scale,
    )
    vit: nn.Module = Dinov2WithRegistersModel._from_config(config, attn_implementation="eager")
    for parameter in vit.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return vit


# --- schedules and optimiser ----------------------------------------------------------------


def cosine(start: float, end: float, step: int, total: int) -> float:
    """Half a cosine over ``total`` steps."""
    return end + (start - end) * (1 + math.cos(math.pi * step / total)) / 2


class AdamW:
    """AdamW (arXiv 1711.05101, algorithm 2) with a rate and a decay for each parameter."""

    def __init__(self, parameters: dict[str, nn.Parameter], *, epsilon: float) -> None:
        self.parameters, self.epsilon, self.steps = parameters, epsilon, 0
        self.first = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in parameters.items()}

    def step(self, rates: dict[str, float], decays: dict[str, float]) -> None:
        """One step with the gradients that are there."""
        self.steps += 1
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            assert gradient is not None, name
            first, second = self.first[name], self.second[name]
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            mean = first / (1 - 0.9**self.steps)
            size = (second / (1 - 0.999**self.steps)).sqrt() + self.epsilon
            parameter.data = parameter.data * (1 - rates[name] * decays[name])
            parameter.data = parameter.data - rates[name] * mean / size

"""A whole step, and a whole run, against an implementation that shares nothing with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from models.straightforward import AdamW, Head, Method, Settings, Side, cosine, make_vit
from pretraining_toys import (
    ARCH,
    GLOBAL,
    HEAD,
    PREPROCESSOR,
    MadeViews,
    batch,
    collate,
    model_cfg,
    runner,
    tiny_model,
)
from safetensors.torch import save_file
from torch import Tensor

from mmseg_eomt.checkpoints.describe import unwrap
from mmseg_eomt.datasets.samplers import StepSampler

IBOT_HEAD = {"hidden_channels": 20, "bottleneck_channels": 8, "num_prototypes": 24}
CASES = [("softmax", None), ("sinkhorn", None), ("softmax", IBOT_HEAD)]


def make_head(channels: int, sizes: dict[str, int]) -> Head:
    return Head(
        channels, sizes["hidden_channels"], sizes["bottleneck_channels"], sizes["num_prototypes"]
    )


def make_method(centring: str, ibot_head: dict[str, int] | None) -> Method:
    vit = make_vit(ARCH, image_size=GLOBAL, layer_scale=0.5)
    # Our class token holds its position, theirs has it beside it.
    vit.embeddings.position_embeddings.data[:, 0] = 0.0
    channels = ARCH["embed_dims"]
    patch_head = None if ibot_head is None else make_head(channels, ibot_head)
    settings = Settings(centring, dino=0.9, ibot=1.3, koleo=0.2)
    return Method(Side(vit, make_head(channels, HEAD), patch_head), settings)


def our_cfg(centring: str, ibot_head: dict[str, int] | None) -> dict[str, Any]:
    weights = {"dino_weight": 0.9, "ibot_weight": 1.3, "koleo_weight": 0.2}
    return {"centring": centring, "ibot_head": ibot_head, **weights}


def as_ours(side: Side, folder: Path, *, gradients: bool = False) -> dict[str, Tensor]:
    """Weights of a side, or their gradients, under the names of our ``Network``.

    The backbone goes through a file of transformers, as a user's would.
    """

    def of(parameter: torch.nn.Parameter) -> Tensor:
        return (parameter.grad if gradients else parameter.data).float().contiguous()  # type: ignore[union-attr]

    theirs = {name: of(parameter) for name, parameter in side.vit.named_parameters()}
    if gradients:
        theirs["embeddings.position_embeddings"][:, 0] = 0.0
    folder.mkdir(exist_ok=True)
    save_file(theirs, folder / "vit.safetensors")
    backbone = MODELS.build(
        {"type": "DINOv2", "arch": ARCH, "image_size": GLOBAL}
        | {"pretrained": str(folder / "vit.safetensors")}
    )
    backbone.init_weights()
    found = {f"encoder.backbone.{name}": value for name, value in backbone.state_dict().items()}
    found["encoder.mask_token"] = theirs["embeddings.mask_token"]
    heads = {"head": side.head}
    if side.patch_head is not side.head:
        heads["ibot_head"] = side.patch_head
    for name, head in heads.items():
        found[f"{name}.last_layer"] = of(head.last)
        for place, layer in zip((0, 2, 4), head.layers, strict=True):
            found[f"{name}.mlp.{place}.weight"] = of(layer.weight)
            found[f"{name}.mlp.{place}.bias"] = of(layer.bias)
    return found


def view_by_view(inputs: dict[str, Tensor], *, local: int) -> dict[str, Any]:
    """A batch as the reference takes it, normalised in float64."""
    mean, std = (
        torch.tensor(PREPROCESSOR[name]).double().view(3, 1, 1) for name in ("mean", "std")
    )
    size = len(inputs["global_views"]) // 2

    def views(name: str) -> list[list[Tensor]]:
        flat = [(view.double() - mean) / std for view in inputs[name]]
        return [flat[first : first + size] for first in range(0, len(flat), size)]

    masks = list(inputs["masks"])
    assert len(inputs["local_views"]) == local * size
    return {
        "globals": views("global_views"),
        "locals": views("local_views"),
        "masks": [masks[:size], masks[size:]],
    }


def assert_all_close(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], *, tolerance: float
) -> None:
    """Each tensor within ``tolerance`` of its own largest value."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        difference = float((value.detach() - theirs[name]).abs().max())
        assert difference <= tolerance * max(float(theirs[name].abs().max()), 1e-3), name


@pytest.mark.parametrize(("centring", "ibot_head"), CASES)
def test_losses_gradients_centres_and_teacher_are_those_of_the_paper(
    centring: str, ibot_head: dict[str, int] | None, tmp_path: Path
) -> None:
    theirs = make_method(centring, ibot_head)
    ours = tiny_model(**our_cfg(centring, ibot_head))
    ours.student.load_state_dict(as_ours(theirs.student, tmp_path))
    # The teacher is another network than the student, as after some steps.
    for parameter in theirs.teacher.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    theirs.teacher.vit.embeddings.position_embeddings.data[:, 0] = 0.0
    ours.teacher.load_state_dict(as_ours(theirs.teacher, tmp_path))
    ours.train()
    for step, temp in enumerate((0.04, 0.07)):  # the second step has centres that are not zero
        data = batch(3, first=10 * step, local=2)
        ours.teacher_temp = temp
        found = ours(**ours.data_preprocessor(data), mode="loss")
        expected = theirs.losses(view_by_view(data["inputs"], local=2), temp)
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=2e-5), name

        ours.zero_grad()
        theirs.student.zero_grad()
        sum(found[name] for name in expected).backward()
        sum(expected.values()).backward()
        gradients = {n: p.grad for n, p in ours.student.named_parameters() if p.grad is not None}
        wanted = as_ours(theirs.student, tmp_path, gradients=True)
        assert_all_close(gradients, wanted, tolerance=1e-4)

        ours.update_teacher(0.9)
        theirs.move_teacher(0.9)
        moved = as_ours(theirs.teacher, tmp_path)
        assert_all_close(dict(ours.teacher.named_parameters()), moved, tolerance=1e-6)
        for centre, name in zip(ours.centres, ("class", "patch"), strict=False):
            assert_all_close(
                {name: centre.centre},
                {name: theirs.settings.centres[name].float()},
                tolerance=1e-5,
            )


STEPS, LR = 6, 0.3


def rate(name: str, depth: int) -> tuple[float, bool]:
    """Factor of the learning rate, and whether a weight decays, of a parameter of the reference."""
    decays = not name.endswith("bias") and "norm" not in name and "lambda1" not in name
    if name.startswith("vit.encoder.layer."):
        return 0.9 ** (depth - int(name.split(".")[3])), decays
    if name.startswith("vit.embeddings."):
        return 0.9 ** (depth + 1) * (0.2 if "patch_embeddings" in name else 1.0), decays
    return 1.0, decays


def test_a_run_is_that_of_the_paper(tmp_path: Path) -> None:
    """Six steps of the runner: order of things, schedules, groups, clipping, teacher."""
    theirs = make_method("softmax", None)
    batches: list[dict[str, Tensor]] = []

    def remember(samples: list[dict[str, Any]]) -> dict[str, Any]:
        made = collate(samples)
        batches.append(made["inputs"])
        return made

    data = MadeViews()
    loader = {
        **{"batch_size": 3, "num_workers": 0, "drop_last": True, "dataset": data},
        **{"sampler": StepSampler(data, seed=5), "collate_fn": remember},
    }
    # A large epsilon: where a gradient is nearly 0, AdamW would make a full step of its rounding.
    made = runner(
        tmp_path / "run",
        steps=STEPS,
        global_batch_size=3,
        lr=LR,
        epsilon=1e-2,
        model=model_cfg(**our_cfg("softmax", None)),
        loader=loader,
        schedule={
            "warmup": 2,
            "final_lr": 1e-4,
            "weight_decay": (0.1, 0.4),
            "teacher_temp": (0.04, 0.07),
            "teacher_temp_warmup": 4,
            "momentum": (0.8, 1.0),
            "freeze_last_layer": 1,
        },
        every=100,
    )
    ours = unwrap(made.model)
    ours.student.load_state_dict(as_ours(theirs.student, tmp_path))
    ours.teacher.load_state_dict(as_ours(theirs.teacher, tmp_path))
    made.train()

    parameters = dict(theirs.student.named_parameters())
    optimizer = AdamW(parameters, epsilon=1e-2)
    peak = LR * (3 / 1024) ** 0.5
    for step in range(STEPS):
        temp = (0.04, 0.05, 0.06, 0.07, 0.07, 0.07)[step]
        lr = (0.0, peak)[step] if step < 2 else cosine(peak, 1e-4, step - 2, STEPS - 2)
        decay = cosine(0.1, 0.4, step, STEPS)
        theirs.student.zero_grad()
        sum(theirs.losses(view_by_view(batches[step], local=2), temp).values()).backward()
        parameters["vit.embeddings.position_embeddings"].grad[:, 0] = 0.0
        size = torch.stack([p.grad.norm() for p in parameters.values()]).norm()
        for parameter in parameters.values():
            parameter.grad *= min(1.0, 3.0 / float(size))
        rates, decays = {}, {}
        for name in parameters:
            factor, decays_at_all = rate(name, ARCH["depth"])
            frozen = name == "head.last" and step < 1
            rates[name] = 0.0 if frozen else lr * factor
            decays[name] = decay if decays_at_all else 0.0
        optimizer.step(rates, decays)
        theirs.move_teacher(cosine(0.8, 1.0, step, STEPS))

    for network, side in ((ours.student, theirs.student), (ours.teacher, theirs.teacher)):
        found = dict(network.named_parameters())
        assert_all_close(found, as_ours(side, tmp_path), tolerance=2e-4)

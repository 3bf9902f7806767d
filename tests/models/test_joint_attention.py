"""Joint blocks against timm's own blocks with a dense mask."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from mmseg_eomt.models.joint_attention import run_joint_block

Q, P, GRID = 5, 5, (3, 4)


def _block(kind: str) -> tuple[nn.Module, torch.Tensor | None]:
    if kind == "vit":
        vit = timm.create_model(
            "vit_small_patch14_reg4_dinov2", img_size=56, embed_dim=32, depth=1, num_heads=4
        )
        rope = None
    else:
        vit = timm.create_model(
            "vit_small_patch16_dinov3_qkvb", img_size=64, embed_dim=32, depth=1, num_heads=4
        )
        rope = vit.rope.get_embed(shape=GRID)
    block = vit.blocks[0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return block, rope


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize("masked", [False, True])
def test_split_attention_equals_dense_attention_of_timm(kind: str, masked: bool) -> None:
    torch.manual_seed(0)
    block, rope = _block(kind)
    patches = GRID[0] * GRID[1]
    tokens = torch.randn(2, Q + P + patches, 32)
    allowed = torch.rand(2, Q, patches) > 0.5
    allowed[0, 0] = False  # a query that may see no patch still sees queries and prefix
    dense = torch.ones(2, 1, Q + P + patches, Q + P + patches, dtype=torch.bool)
    dense[:, 0, :Q, Q + P :] = allowed
    arguments = {"attn_mask": dense} if masked else {}
    if kind == "eva":
        arguments["rope"] = rope
        block.attn.num_prefix_tokens = Q + P
    expected = block(tokens, **arguments)
    got = run_joint_block(
        block,
        tokens,
        num_queries=Q,
        num_prefix_tokens=P,
        rope=rope,
        patch_mask=allowed if masked else None,
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert got.isfinite().all()


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_equal_those_of_timm(kind: str, dtype: torch.dtype) -> None:
    """Also of a block without queries, and under autocast."""
    torch.manual_seed(0)
    block, rope = _block(kind)
    tokens = torch.randn(2, P + GRID[0] * GRID[1], 32)
    wanted = torch.randn(2, P + GRID[0] * GRID[1], 32)
    inputs = {} if rope is None else {"rope": rope}
    runs = (
        lambda x: block(x, **inputs),
        lambda x: run_joint_block(block, x, num_queries=0, num_prefix_tokens=P, rope=rope),
    )
    gradients = []
    for run in runs:
        leaf = tokens.clone().requires_grad_()
        block.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            output = run(leaf)
        (output.float() * wanted).sum().backward()
        found = {name: parameter.grad for name, parameter in block.named_parameters()}
        gradients.append({"output": output.detach().float(), "tokens": leaf.grad, **found})
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for name, expected in gradients[0].items():
        error = (gradients[1][name] - expected).norm() / expected.norm()
        assert error < tolerance, name


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_a_block_keeps_less_than_timms(kind: str) -> None:
    block, rope = _block(kind)
    tokens = torch.randn(32, P + GRID[0] * GRID[1], 32)
    inputs = {} if rope is None else {"rope": rope}
    kept = []
    parameters = {parameter.data_ptr() for parameter in block.parameters()}
    for run in (
        lambda: block(tokens, **inputs),
        lambda: run_joint_block(block, tokens, num_queries=0, num_prefix_tokens=P, rope=rope),
    ):
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if tensor.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = run()
        kept.append(sum(storages.values()))
        del output
    assert kept[1] < 0.7 * kept[0]


def test_a_foreign_block_is_refused_by_name() -> None:
    class OtherBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block, _ = _block("vit")
            self.attn, self.norm1 = block.attn, block.norm1

    with pytest.raises(TypeError, match=r"OtherBlock.*Block \(VisionTransformer\) or EvaBlock"):
        run_joint_block(OtherBlock(), torch.randn(1, 12, 32), num_queries=2, num_prefix_tokens=1)

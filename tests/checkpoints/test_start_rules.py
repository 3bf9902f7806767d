"""Starting from other sizes: values, compared with computations of timm and torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from mmseg_eomt.apis.inference import build_segmentor
from mmseg_eomt.checkpoints.start_rules import ClassRow, Fitted, match_classes
from mmseg_eomt.checkpoints.weights_file import save_weights
from mmseg_eomt.engine.hooks.start_from import as_text, start_from, start_tables
from mmseg_eomt.header import ModelHeader
from tests.apis.tiny import ARCH, tiny_header

KERNEL = "backbone.vit.patch_embed.proj.weight"
TABLE = "backbone.vit.pos_embed"
QUERY = "decode_head.query.weight"
HEAD = ("decode_head.class_head.weight", "decode_head.class_head.bias")


class Start:
    """A file of `old`, a model of `new` before and after it starts from the file."""

    def __init__(self, path: Any, old: ModelHeader, new: ModelHeader, **arguments: Any) -> None:
        torch.manual_seed(1)
        source = build_segmentor(old)
        self.old = _copy(source.state_dict())
        save_weights(path, source, old)
        torch.manual_seed(2)
        self.model = build_segmentor(new)
        self.before = _copy(self.model.state_dict())
        self.fitted: Fitted = start_from(self.model, path, classes=list(new.classes), **arguments)
        self.after = _copy(self.model.state_dict())

    def rule(self, part: str) -> str:
        return next(rule.done for rule in self.fitted.rules if rule.part == part)

    def check_rest_is_taken(self, *changed: str) -> None:
        """Everything but `changed` and the class head is that of the file, bit for bit."""
        for name, value in self.after.items():
            if name in HEAD:
                assert torch.equal(value, self.before[name]), name
            elif not name.startswith(changed):
                assert torch.equal(value, self.old[name]), name


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


@pytest.fixture
def path(tmp_path: Any) -> Any:
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_same_sizes_take_all_but_the_class_head(family: str, path: Any) -> None:
    header = tiny_header(family=family)
    start = Start(path, header, header)
    start.check_rest_is_taken()
    assert not torch.equal(start.old[HEAD[0]], start.after[HEAD[0]])
    done = {rule.part: rule.done for rule in start.fitted.rules}
    assert done.pop("class head").startswith("begins anew")
    if family == "dinov3":
        assert "rotary" in done.pop("image size")
    assert set(done.values()) == {"taken over"}


@pytest.mark.parametrize("wanted", [2, 4, 7])
def test_queries_are_the_first_ones(wanted: int, path: Any) -> None:
    start = Start(path, tiny_header(), tiny_header(num_queries=wanted))
    expected = torch.cat((start.old[QUERY], start.before[QUERY][4:]))[:wanted]
    assert start.after[QUERY].shape == (wanted, 16)
    assert torch.equal(start.after[QUERY], expected)
    start.check_rest_is_taken(QUERY)
    rule = {2: "first 2 taken, 2 left out", 4: "taken over", 7: "first 4 taken, 3 begin anew"}
    assert start.rule("queries") == rule[wanted]


@pytest.mark.parametrize("wanted", [(64, 64), (48, 32), (24, 40), (30, 35)])
@pytest.mark.parametrize("registers", [4, 0])
def test_position_table_is_resampled_as_timm_does(
    wanted: tuple[int, int], registers: int, path: Any
) -> None:
    old = tiny_header(
        family="dinov2", image_size=(32, 48), architecture={**ARCH, "num_registers": registers}
    )
    start = Start(path, old, old.replace(image_size=wanted))
    prefix = 0 if registers else 1  # without registers cls has a position of its own
    grid = [-(-side // 8) for side in wanted]
    expected = resample_abs_pos_embed(
        start.old[TABLE], grid, old_size=[4, 6], num_prefix_tokens=prefix
    )
    assert not torch.equal(start.before[TABLE], start.after[TABLE])
    torch.testing.assert_close(start.after[TABLE], expected, rtol=1e-5, atol=1e-6)
    start.check_rest_is_taken(TABLE)
    assert "bicubic" in start.rule("image size")


def test_as_many_positions_on_another_grid_are_resampled(path: Any) -> None:
    old = tiny_header(family="dinov2", image_size=(32, 64))
    start = Start(path, old, old.replace(image_size=(64, 32)))
    assert start.old[TABLE].shape == start.after[TABLE].shape
    planes = start.old[TABLE].reshape(1, 4, 8, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(planes, size=(8, 4), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        start.after[TABLE], expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-6
    )


def test_no_weight_of_dinov3_depends_on_the_image_size(path: Any) -> None:
    start = Start(path, tiny_header(), tiny_header(image_size=(64, 96)))
    start.check_rest_is_taken()
    assert start.rule("image size") == "nothing to do: rotary positions fit any grid"


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@pytest.mark.parametrize("side", [4, 14, 16])
def test_kernel_is_resampled_as_timm_does(family: str, side: int, path: Any) -> None:
    old = tiny_header(family=family)
    start = Start(path, old, old.replace(patch_size=side))
    expected = resample_patch_embed(start.old[KERNEL], [side, side])
    assert start.after[KERNEL].shape == (16, 3, side, side)
    torch.testing.assert_close(start.after[KERNEL], expected, rtol=1e-6, atol=1e-7)
    start.check_rest_is_taken(KERNEL, TABLE)
    assert "resampled" in start.rule("patch size")
    if family == "dinov2":
        grid = [-(-32 // side)] * 2
        positions = resample_abs_pos_embed(
            start.old[TABLE], grid, old_size=[4, 4], num_prefix_tokens=0
        )
        torch.testing.assert_close(start.after[TABLE], positions, rtol=1e-5, atol=1e-6)


def test_a_larger_patch_gives_the_same_tokens_on_larger_patches(path: Any) -> None:
    start = Start(path, tiny_header(), tiny_header(patch_size=16))
    image = torch.randn(1, 3, 32, 32)
    # Patch by patch, as the kernel sees them: a resize of the whole looks across the borders.
    patches = F.unfold(image, 8, stride=8).transpose(1, 2).reshape(-1, 3, 8, 8)
    grown = F.interpolate(patches, size=(16, 16), mode="bicubic", antialias=True)
    was = F.conv2d(patches, start.old[KERNEL])
    torch.testing.assert_close(F.conv2d(grown, start.after[KERNEL]), was, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("found", "wanted"), [(3, 1), (3, 5), (4, 3), (1, 3), (1, 2)])
def test_input_channels(found: int, wanted: int, path: Any) -> None:
    old, new = (
        tiny_header(in_channels=count, mean=(0.0,) * count, std=(1.0,) * count)
        for count in (found, wanted)
    )
    start = Start(path, old, new)
    was, now = start.old[KERNEL], start.after[KERNEL]
    image = torch.randn(2, 1, 8, 8)
    if 1 in (found, wanted):
        # A grey picture in as many channels as each takes.
        before = F.conv2d(image.expand(-1, found, -1, -1), was)
        after = F.conv2d(image.expand(-1, wanted, -1, -1), now)
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
        assert torch.equal(now, now[:, :1].expand_as(now))
    else:
        shared = min(found, wanted)
        assert torch.equal(now[:, :shared], was[:, :shared])
        assert not now[:, shared:].any()
    start.check_rest_is_taken(KERNEL)
    assert start.rule("input channels") != "taken over"


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_upscale_blocks_are_the_first_ones(wanted: int, path: Any) -> None:
    start = Start(path, tiny_header(num_upscale_blocks=2), tiny_header(num_upscale_blocks=wanted))
    start.check_rest_is_taken("decode_head.upscale.2.")
    for name, value in start.after.items():
        if name.startswith("decode_head.upscale.2."):
            assert torch.equal(value, start.before[name]), name
    assert {0: "first 0 taken, 2 left out", 1: "first 1 taken, 1 left out", 2: "taken over"}.get(
        wanted, "first 2 taken, 1 begin anew"
    ) == start.rule("upscale blocks")


def test_other_joint_blocks_take_every_block(path: Any) -> None:
    start = Start(path, tiny_header(), tiny_header(num_joint_blocks=2))
    start.check_rest_is_taken()
    assert "before block 0, not 1" in start.rule("joint blocks")


def test_everything_at_once_runs(path: Any) -> None:
    new = tiny_header(
        family="dinov2",
        patch_size=16,
        image_size=(64, 96),
        num_queries=6,
        num_joint_blocks=2,
        num_upscale_blocks=2,
        classes=("a", "sky"),
        class_ids=(0, 1),
        palette=((0, 0, 0), (1, 1, 1)),
    )
    start = Start(path, tiny_header(family="dinov2"), new, reuse_class_head="by_name")
    state = start.model.backbone(torch.randn(1, 3, 64, 96))
    masks, scores = start.model.decode_head(state)
    assert masks.shape == (1, 6, 16, 24) and scores.shape == (1, 6, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 4}, "2 attention heads in the file, 4 in the model"),
        ({"embed_dims": 24}, r"of another shape.*\(16,\) in the file, \(24,\) in the model"),
        ({"depth": 3}, r"missing in the file: \(\d+\) backbone.vit.blocks.2"),
        ({"num_registers": 2}, "reg_token"),
    ],
)
def test_another_architecture_is_refused_and_nothing_changes(
    changes: dict[str, Any], message: str, path: Any
) -> None:
    save_weights(path, build_segmentor(tiny_header()), tiny_header())
    model = build_segmentor(tiny_header(architecture={**ARCH, **changes}))
    before = _copy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        start_from(model, path, classes=["a", "b", "c"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_another_activation_is_refused(path: Any) -> None:
    save_weights(path, build_segmentor(tiny_header()), tiny_header(activation="silu"))
    model = build_segmentor(tiny_header())
    with pytest.raises(ValueError, match=r"silu in the file and gelu.*activation='silu'"):
        start_from(model, path, classes=["a", "b", "c"])


def test_table_that_contradicts_the_header_is_refused(path: Any) -> None:
    header = tiny_header(family="dinov2")
    save_weights(path, build_segmentor(header), header.replace(image_size=(32, 64)))
    with pytest.raises(ValueError, match="so 32 positions, but the table has the shape"):
        start_from(build_segmentor(header), path, classes=list(header.classes))


WEIGHT, BIAS = "decode_head.class_head.weight", "decode_head.class_head.bias"


def _header(*classes: str) -> ModelHeader:
    count = len(classes)
    return tiny_header(classes=classes, class_ids=tuple(range(count)), palette=((0, 0, 0),) * count)


def _start(tmp_path: Any, old: ModelHeader, new: ModelHeader, reuse: Any) -> Any:
    path = tmp_path / "w.safetensors"
    source, model = build_segmentor(old), build_segmentor(new)
    save_weights(path, source, old)
    before = {name: model.state_dict()[name].clone() for name in (WEIGHT, BIAS)}
    fitted = start_from(model, path, classes=list(new.classes), reuse_class_head=reuse)
    return fitted, source.state_dict(), before, model.state_dict()


def test_by_name_takes_rows_of_the_same_name(tmp_path: Any) -> None:
    old = _header("road", "sky", "tree", "Car")
    new = _header("tree", "person", " road ", "car", "[red]dog")
    fitted, theirs, before, after = _start(tmp_path, old, new, "by_name")
    for name in (WEIGHT, BIAS):
        assert len(after[name]) == 6
        for row, origin in {0: 2, 2: 0, 5: 4}.items():
            assert torch.equal(after[name][row], theirs[name][origin]), (name, row)
        for row in (1, 3, 4):
            assert torch.equal(after[name][row], before[name][row]), (name, row)
    text = as_text(start_tables(fitted))
    assert "2 of 5 classes keep their rows, 3 begin anew" in fitted.rules[-1].done
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["tree", "2", ""] in lines
    assert ["person", "begins anew", ""] in lines
    assert ["road", "0", ""] in lines
    assert ["car", "begins anew", "the file has 'Car': not the same name"] in lines
    assert ["[red]dog", "begins anew", ""] in lines
    assert ["(no object)", "4", ""] in lines


def test_by_name_with_no_common_class_keeps_no_object(tmp_path: Any) -> None:
    _, theirs, before, after = _start(tmp_path, _header("a", "b"), _header("c"), "by_name")
    for name in (WEIGHT, BIAS):
        assert torch.equal(after[name], torch.stack((before[name][0], theirs[name][2])))


def test_anew_keeps_the_models_own_rows_even_for_the_same_classes(tmp_path: Any) -> None:
    header = _header("a", "b")
    _, theirs, before, after = _start(tmp_path, header, header, False)
    for name in (WEIGHT, BIAS):
        assert torch.equal(after[name], before[name])
        assert not torch.equal(after[name], theirs[name])


def test_true_takes_the_head_over(tmp_path: Any) -> None:
    _, theirs, _, after = _start(tmp_path, _header("a", "b"), _header("a", "b "), True)
    for name in (WEIGHT, BIAS):
        assert torch.equal(after[name], theirs[name])


@pytest.mark.parametrize(
    ("found", "wanted", "reuse", "message"),
    [
        (("a", "b"), ("a", "c"), True, "only in the file: 'b'; only in the dataset: 'c'"),
        (("a", "b"), ("a",), True, "only in the file: 'b'. reuse_class_head='by_name'"),
        (("a", "b"), ("b", "a"), True, r"another order \(file / dataset\): 'a' / 'b', 'b' / 'a'"),
        (("a", "A"), ("a", "a "), "by_name", "dataset has more than one class named 'a'"),
        (("a", "a"), ("a", "b"), "by_name", "file has more than one class named 'a'"),
        (("a",), ("a",), "names", "'names'; allowed: False"),
        (("a",), ("a",), 1, "reuse_class_head is 1"),
    ],
)
def test_what_cannot_be_is_refused(
    found: Any, wanted: Any, reuse: Any, message: str, tmp_path: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        _start(tmp_path, _header(*found), _header(*wanted), reuse)


def test_similar_names_are_hinted_only_where_they_are_free() -> None:
    rows = match_classes(["Road", "road", "SKY"], ["road", "ROAD", "Sky"], "f")
    assert rows[0] == ClassRow("road", 1)
    assert rows[1].source is None and "'Road'" in rows[1].hint and "'road'" not in rows[1].hint
    assert rows[2].source is None and "'SKY'" in rows[2].hint
    assert rows[3] == ClassRow(None, 3)

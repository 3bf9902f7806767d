"""A resume under other conditions goes by a stated rule, or is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmseg_eomt.datasets.samplers import StepSampler
from mmseg_eomt.engine.resume_contract import check_contract, fingerprint
from tests.engine.engine_toys import ToyData, ToySegmentor
from tests.engine.exact import AugmentedData, exact_runner

BASE: dict[str, Any] = {"steps": 6, "save_best": False}


class OtherClasses(AugmentedData):
    metainfo = {"classes": ("road", "tree"), "palette": [(90, 90, 90), (70, 130, 180)]}


class Named(AugmentedData):
    def __init__(self, first: str) -> None:
        super().__init__()
        self.first = first

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_path": f"{self.folder}/{self.first if index == 0 else index}.png"}


class OtherOrder(StepSampler):
    """Shows images in another order, says its name."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of six steps."""
    folder = tmp_path_factory.mktemp("begun")
    exact_runner(folder, data=Named("a"), **BASE).train()
    return folder / "iter_6.pth"


EMA = {"hooks": [{"type": "EMAHook"}]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "classes": (
        {"data": OtherClasses()},
        r"classes: was 2 \(road, sky\), is 2 \(road, tree\); train with the data",
    ),
    "global batch": ({"global_batch_size": 8}, r"global_batch_size: was 4, is 8; set it to"),
    "number of images": ({"data": AugmentedData(size=11)}, r"training images: was 12, is 11"),
    "other images": ({"data": Named("b")}, r"names of the training images: was \w{12}, is"),
    "sampler": ({"sampler": OtherOrder}, r"sampler: was StepSampler, is OtherOrder; set it"),
    "seed": ({"randomness": {"seed": 6}}, r"seed: was 5, is 6; set randomness\.seed \(--seed\)"),
    "averaging added": (EMA, r"has no averaged weights \(EMAHook\).*other way round"),
    "fewer steps": ({"steps": 5}, r"6 steps are done, now the run has 5; give at least 6"),
    "another model": ({"model": ToySegmentor(depth=4)}, r"missing in the file: .*blocks\.3"),
    "another optimiser": (
        {"optim": {"paramwise_cfg": {"layer_decay": 0.5, "decay_exclude": "usual"}}},
        r"parameter groups that are not",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_changed_run_is_refused_before_training(begun: Path, tmp_path: Path, case: str) -> None:
    changes, words = REFUSED[case]
    options = {**BASE, "steps": 9, "data": Named("a"), **changes}
    run = exact_runner(tmp_path, load_from=str(begun), resume=True, **options)
    with pytest.raises(ValueError, match=words) as error:
        run.train()
    assert "iter_6.pth" in str(error.value) or case == "another optimiser"
    assert run.model.decode_head.seen == []
    assert not list(tmp_path.glob("*.pth"))


def test_averaging_taken_away_is_refused(tmp_path: Path) -> None:
    exact_runner(tmp_path, **BASE, **EMA).train()
    with pytest.raises(ValueError, match=r"iter_6\.pth: has averaged weights"):
        exact_runner(tmp_path, resume=True, **{**BASE, "steps": 9}).train()


def test_more_steps_follow_the_schedule_of_the_new_length(begun: Path, tmp_path: Path) -> None:
    options = {**BASE, "data": Named("a"), "warmup": (0.2, 0.2)}
    long = exact_runner(tmp_path, load_from=str(begun), resume=True, **{**options, "steps": 12})
    long.train()
    assert [step for step, _, _ in long.model.decode_head.seen] == list(range(6, 12))
    fresh = exact_runner(tmp_path / "fresh", **{**options, "steps": 12})
    fresh.train()
    seen = [masks for _, _, masks in fresh.model.decode_head.seen[6:]]
    assert [masks for _, _, masks in long.model.decode_head.seen] == seen
    rates = [
        [group["lr"] for group in run.optim_wrapper.optimizer.param_groups] for run in (long, fresh)
    ]
    assert rates[0] == rates[1]


def test_another_micro_batch_trains_alike(begun: Path, tmp_path: Path) -> None:
    ends = []
    for size in (1, 4):
        options = {**BASE, "steps": 9, "data": Named("a"), "model": ToySegmentor()}
        folder = tmp_path / str(size)
        run = exact_runner(folder, batch_size=size, load_from=str(begun), resume=True, **options)
        run.train()
        ends.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)


def test_a_config_without_a_seed_takes_the_checkpoints(begun: Path, tmp_path: Path) -> None:
    options = {**BASE, "steps": 9, "data": Named("a"), "randomness": {"seed": None}}
    run = exact_runner(tmp_path, load_from=str(begun), resume=True, **options)
    run.train()
    assert run.seed == 5
    assert {seed for _, seed, _ in run.model.decode_head.seen} == {5}


def test_allowed_changes_are_said() -> None:
    stored = {"max_iters": 6, "world_size": 1, "micro_batch_size": 4}
    notes = check_contract(
        stored, {"max_iters": 9, "world_size": 2, "micro_batch_size": 2}, step=6, source="x"
    )
    assert [note.split(":")[0] for note in notes] == [
        "max_iters was 6, is 9",
        "world_size was 1, is 2",
        "micro_batch_size was 4, is 2",
    ]


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(ValueError, match="written by a newer mmseg_eomt"):
        check_contract({"format": 2}, {"max_iters": 9}, step=6, source="x")


def test_a_moved_dataset_keeps_its_fingerprint() -> None:
    here, there = Named("a"), Named("a")
    there.folder = Path("/elsewhere")
    assert fingerprint(here) == fingerprint(there) != fingerprint(Named("b"))
    assert fingerprint(ToyData()) == ""


def test_a_checkpoint_as_mmengine_writes_it_resumes(begun: Path, tmp_path: Path) -> None:
    from mmengine.logging import HistoryBuffer

    checkpoint = torch.load(begun, weights_only=True)
    for key in ("resume_contract", "processes"):
        del checkpoint[key]
    hub = checkpoint["message_hub"]
    history = HistoryBuffer()
    history.update(1.0)
    hub["log_scalars"] = {"train/loss": history}
    old = tmp_path / "iter_6.pth"
    torch.save(checkpoint, old)
    run = exact_runner(tmp_path, resume=True, **{**BASE, "steps": 9, "data": Named("a")})
    run.train()
    assert run.iter == 9
    stored = torch.load(tmp_path / "iter_9.pth", weights_only=True)["message_hub"]["log_scalars"]
    assert stored["train/loss"]["values"][0] == 1.0
    # Its classes are compared even so.
    other = {**BASE, "steps": 9, "data": OtherClasses()}
    with pytest.raises(ValueError, match="classes: was"):
        exact_runner(tmp_path / "x", load_from=str(old), resume=True, **other).train()

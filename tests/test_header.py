"""JSON that came from a file: any field of the wrong type is a ValueError that names it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmseg_eomt.deploy.metadata import DeployMetadata
from mmseg_eomt.deploy.tensorrt.record import EngineRecord, Profile
from mmseg_eomt.header import ModelHeader
from tests.apis.tiny import tiny_header

METADATA = DeployMetadata(model=tiny_header(), height=32, width=32)
SHAPES = ((1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32))
RECORD = EngineRecord("10.16", "NVIDIA L4 (8.9)", {"images": Profile(*SHAPES)}, "0" * 64, METADATA)
KINDS: dict[str, tuple[str, Callable[..., Any]]] = {
    "header": (tiny_header(window_size=(32, 32)).to_json(), ModelHeader.from_json),
    "metadata": (METADATA.to_json(), DeployMetadata.from_json),
    "record": (RECORD.to_json(), EngineRecord.from_json),
}
NAN, HUGE = float("nan"), 10**400  # what Python's JSON reads besides JSON, and no float holds
VALUES: list[Any] = [None, True, -1, 1.5, "x", [], {}, NAN, HUGE, float("inf"), "12"]

# What a field may be of these values; of a list, what its items may be.
LEGAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tensorrt", "gpu", "sha256", "architecture", "name", "torch"), ("x", "12")),
    **dict.fromkeys(("window_size", "test_size", "metadata"), (None,)),
    **dict.fromkeys(("num_queries", "num_joint_blocks", "num_upscale_blocks"), (HUGE,)),
    **dict.fromkeys(("patch_size", "height", "width", "batch_size"), (HUGE,)),
    **dict.fromkeys(("image_size[]", "window_size[]", "test_size[]", "class_ids[]"), (HUGE,)),
    **dict.fromkeys(("windows", "bgr_to_rgb"), (True,)),
    **dict.fromkeys(("backbone_args", "versions"), ({},)),
    "mean[]": (-1, 1.5),
    "std[]": (1.5,),
    "ignore_index": (-1, HUGE),
    "dynamic": ([],),
    "classes[]": ("x", "12"),
    "maximum[]": (HUGE,),
}


def _places(values: dict[str, Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to each field, and to the first item of each list."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict) and key not in ("architecture", "versions", "metadata", "model"):
            yield from _places(value, (*path, key))
        elif isinstance(value, list) and value and key != "outputs":
            yield (*path, key, 0)


CASES = [
    pytest.param(kind, path, id=f"{kind}-{'.'.join(map(str, path))}")
    for kind, (text, _) in KINDS.items()
    for path in _places(json.loads(text))
]


@pytest.mark.parametrize(("kind", "path"), CASES)
def test_a_field_of_the_wrong_type_is_named(kind: str, path: tuple[Any, ...]) -> None:
    text, read = KINDS[kind]
    field = path[-1] if isinstance(path[-1], str) else path[-2]
    allowed = LEGAL.get(field if field == path[-1] else f"{field}[]", ())
    for value in VALUES:
        values = copy.deepcopy(json.loads(text))
        place = values
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        legal = any(type(value) is type(other) and value == other for other in allowed)
        try:
            read(json.dumps(values), source="some.file")
        except ValueError as error:
            # A field of a nested object is named with it, or the object is.
            assert not legal, (value, error)
            assert "some.file" in str(error)
            named = str(error).replace("format version", "format_version")
            assert field in named or f"'{'.'.join(map(str, path[:2]))}'" in named, (value, error)
        else:
            assert legal, value


def test_a_record_whose_profiles_are_of_other_inputs_is_refused() -> None:
    values = json.loads(RECORD.to_json())
    values["profiles"]["pictures"] = values["profiles"].pop("images")
    with pytest.raises(ValueError, match=r"some\.file: .*'profiles' .*images"):
        EngineRecord.from_json(json.dumps(values), source="some.file")

"""Shared by the tests of this project."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def plain_configs() -> Iterator[None]:
    """MMEngine lays out the whole config for each checkpoint: half a second for the eye alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmengine.config.config.FormatCode", lambda text, **_: (text, True))
        yield

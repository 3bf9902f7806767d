"""Shared by the tests of this project."""

from __future__ import annotations

import cv2

import tests.plain_configs  # noqa: F401  (saves most of the time of a tiny run)

# As in every run (env_cfg.mp_cfg): OpenCV's threads do not survive the fork of a loader's workers,
# and a worker that waits for them waits for ever.
cv2.setNumThreads(0)

"""Training with weights spread over processes (FSDP2)."""

from __future__ import annotations

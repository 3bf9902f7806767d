"""Exported models: making them, what they say about themselves, and running them.

`Session` needs neither PyTorch nor the mm packages.
"""

from mmseg_eomt.deploy.session import Session

__all__ = ["Session"]

"""The former place of `mmseg_eomt.safe_write`, which must not import PyTorch."""

from mmseg_eomt.safe_write import remove_temporaries, replaced, sync_folder, write_text

__all__ = ["remove_temporaries", "replaced", "sync_folder", "write_text"]

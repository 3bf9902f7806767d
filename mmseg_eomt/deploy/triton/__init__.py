"""Exported models on a Triton server: the folder it serves them from, and a client."""

from mmseg_eomt.deploy.triton.client import TritonRunner
from mmseg_eomt.deploy.triton.repository import write_model_folder

__all__ = ["TritonRunner", "write_model_folder"]

"""TensorRT 10 and 11: building engines of exported models and running them, without torch."""

from mmseg_eomt.deploy.tensorrt.build import build_engine
from mmseg_eomt.deploy.tensorrt.record import EngineRecord, Profile
from mmseg_eomt.deploy.tensorrt.runner import TensorRTRunner

__all__ = ["build_engine", "Profile", "EngineRecord", "TensorRTRunner"]

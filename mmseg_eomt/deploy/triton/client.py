"""An exported model on a Triton server, for `Session`: `Session(TritonRunner(url, name))`.

Shape legend: B images, C channels, K classes, H/W pixels.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from numpy.typing import NDArray

from mmseg_eomt.deploy.metadata import METADATA_KEY, DeployMetadata

_TIMEOUT = 300.0  # seconds; a large batch on a CPU takes longer than tritonclient's 60
_TYPES = {"float32": "FP32", "uint8": "UINT8"}


class TritonRunner:
    """A model that `write_model_folder` prepared, over HTTP. Not safe for several threads.

    Args:
        url: Host and port of the server, without `http://`.
        model: Name of the model there.

    Attributes:
        metadata: What the model says. Its batch is the largest that the server accepts.

    Raises:
        ImportError: If `tritonclient` is missing.
        ConnectionError: If there is no server.
        ValueError: If the server has no such model, or it was not prepared by mmseg_eomt.
    """

    def __init__(self, url: str, model: str) -> None:
        self._http = _import_client()
        self._url, self._model = url, model
        if "://" in url:
            raise ValueError(f"The server is {url!r}: give host and port alone.")
        self._client = self._http.InferenceServerClient(
            url, connection_timeout=_TIMEOUT, network_timeout=_TIMEOUT
        )
        config = self._asked(self._client.get_model_config, model)
        text = config.get("parameters", {}).get(METADATA_KEY, {}).get("string_value")
        if text is None:
            raise ValueError(
                f"{model} on {url} has no metadata of mmseg_eomt in its config.pbtxt. Make its "
                "folder with tools/triton_repository.py."
            )
        metadata = DeployMetadata.from_json(text, source=f"{model} on {url}")
        largest = int(config.get("max_batch_size", 0))
        if largest:  # else a fixed batch
            metadata = dataclasses.replace(metadata, batch_size=largest)
        self.metadata = metadata

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run a batch, as `Runner.run`."""
        what = self.metadata.input
        tensor = self._http.InferInput(what.name, list(images.shape), _TYPES[what.dtype])
        tensor.set_data_from_numpy(images)
        wanted = [self._http.InferRequestedOutput(name) for name in self.metadata.outputs]
        result = self._asked(self._client.infer, self._model, [tensor], outputs=wanted)
        return {name: result.as_numpy(name) for name in self.metadata.outputs}

    def _asked(self, call: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except self._http.InferenceServerException as error:
            raise ValueError(
                f"Triton on {self._url} refuses a request for {self._model!r}: {error}. "
                f"`curl -X POST {self._url}/v2/repository/index` lists its models and their state."
            ) from error
        except OSError as error:
            raise ConnectionError(
                f"No answer from Triton on {self._url} ({error}). Start it with `tritonserver "
                "--model-repository DIR`; its HTTP port is 8000 as a rule."
            ) from error


def _import_client() -> Any:
    try:
        return importlib.import_module("tritonclient.http")
    except ImportError as error:
        raise ImportError(
            f"Triton's client cannot be imported ({error}). Install it with "
            "`pip install 'tritonclient[http]'`.",
            name="tritonclient",
        ) from error

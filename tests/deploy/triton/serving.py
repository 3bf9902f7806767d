"""A server with Triton's HTTP protocol for one model folder, run by ONNX Runtime.

It holds requests against config.pbtxt as Triton does. That Triton itself accepts the folder cannot
be seen here.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import json_format

from tests.deploy.triton.protocol import MODEL_CONFIG, parsed_config

DTYPES = {"FP32": np.float32, "UINT8": np.uint8, "INT32": np.int32}


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[list[int]]]]:
    """Serve a model folder; gives host and port, and the shapes of the requests so far."""
    config = parsed_config(folder)
    session = onnxruntime.InferenceSession(
        str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    shapes: list[list[int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != f"/v2/models/{config.name}/config":
                return self.answer(b'{"error": "unknown model"}', code=400)
            fields = json_format.MessageToDict(config, preserving_proto_field_name=True)
            self.answer(json.dumps(fields).encode())

        def do_POST(self) -> None:
            assert self.path == f"/v2/models/{config.name}/infer"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers["Inference-Header-Content-Length"])
            request = json.loads(body[:length])
            (sent,) = request["inputs"]
            (expected,) = config.input
            shapes.append(sent["shape"])
            found = [*sent["shape"]]
            if config.max_batch_size:
                assert 1 <= found.pop(0) <= config.max_batch_size
            fits = all(want in (-1, side) for side, want in zip(found, expected.dims, strict=True))
            if not fits or sent["datatype"] != type_name(expected):
                return self.answer(b'{"error": "unexpected shape or type"}', code=400)
            images = np.frombuffer(body[length:], DTYPES[sent["datatype"]])
            names = [output["name"] for output in request["outputs"]]
            arrays = session.run(names, {sent["name"]: images.reshape(sent["shape"])})
            self.answer(*encoded(config, names, arrays))

        def answer(self, header: bytes, data: bytes = b"", *, code: int = 200) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(header) + len(data)))
            if data:
                self.send_header("Inference-Header-Content-Length", str(len(header)))
            self.end_headers()
            self.wfile.write(header + data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", shapes
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def type_name(tensor: Any) -> str:
    """As the protocol writes it."""
    name: str = MODEL_CONFIG.DataType.Name(tensor.data_type)
    return name.removeprefix("TYPE_")


def encoded(config: Any, names: list[str], arrays: list[Any]) -> tuple[bytes, bytes]:
    """Outputs as JSON and the bytes behind it."""
    kinds = {output.name: type_name(output) for output in config.output}
    outputs = []
    for name, array in zip(names, arrays, strict=True):
        assert array.dtype == DTYPES[kinds[name]]
        outputs.append({
            "name": name, "datatype": kinds[name], "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        })  # fmt: skip
    header = json.dumps({"model_name": config.name, "model_version": "1", "outputs": outputs})
    return header.encode(), b"".join(array.tobytes() for array in arrays)

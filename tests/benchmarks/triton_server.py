"""NVIDIA's Triton with a graph behind its Python backend, from a virtual environment with nvidia-pytriton.

That environment needs numpy below 2: with a newer one the backend answers 200 over gRPC and no numbers.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import HOST, Server, free_port

_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 64
input [{{ name: "x" data_type: TYPE_FP32 dims: [28, 28, 1] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [10] }}]
dynamic_batching {{ max_queue_delay_microseconds: 500 }}
instance_group [{{ count: 1 kind: KIND_CPU }}]
"""
_MODEL = """import sys
sys.path.insert(0, {site!r})
import numpy as np
import onnxruntime
import triton_python_backend_utils as backend

class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession({graph!r}, options)

    def execute(self, requests):
        arrays = [backend.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (y,) = self.session.run(None, {{"x": np.concatenate(arrays)}})
        parts = np.split(y, np.cumsum([len(array) for array in arrays])[:-1])
        return [backend.InferenceResponse(output_tensors=[backend.Tensor("y", part)]) for part in parts]
"""


@contextmanager
def serve(venv: Path, repository: Path, name: str, graph: Path) -> Iterator[Server]:
    """Runs Triton with that LeNet-5 under that name; its configuration is written into the repository."""
    site = next(venv.absolute().glob("lib/python3*/site-packages"))
    home = site / "pytriton" / "tritonserver"
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    if not stub.exists():
        version = site.parent.name.removeprefix("python")
        shutil.copy(home / "python_backend_stubs" / version / stub.name, stub)
    for program in (stub, home / "bin" / "tritonserver"):
        program.chmod(0o755)
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(_CONFIG.format(name=name))
    (repository / name / "1" / "model.py").write_text(_MODEL.format(site=str(site), graph=str(graph)))
    libraries = subprocess.run(
        [venv / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    grpc_port, rest_port, metrics_port = free_port(), free_port(), free_port()
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [
                *(home / "bin" / "tritonserver", f"--model-repository={repository}"),
                *(f"--backend-directory={home / 'backends'}", f"--http-port={rest_port}", f"--http-address={HOST}"),
                *(f"--grpc-port={grpc_port}", f"--grpc-address={HOST}", f"--metrics-port={metrics_port}"),
                f"--metrics-address={HOST}",
            ],
            env=os.environ | {"LD_LIBRARY_PATH": f"{libraries}:{site / 'nvidia_pytriton.libs'}"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        server = Server(process, grpc_port, rest_port, Path(log.name))
        try:
            server.wait_until_it_listens()
            yield server
        finally:
            server.kill()  # its own stop waits for connections, and its death leaves its children

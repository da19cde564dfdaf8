"""Regenerates the `*_pb2.py` and `*_pb2.pyi` of this folder from its `.proto` files: `make protos`.

It is protoc's own output but for two things: messages register in our own pool, and every module says that it is
generated. Needs grpcio-tools (extra `dev`).
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = Path("bookserve/serving/wire")

# The version check pins protobuf to the generator's release; the symbol database is the default pool's.
_DEFAULT_POOL_AND_VERSION_CHECK = (
    r"^from google\.protobuf import (runtime_version|symbol_database) as \w+\n",
    r"^_runtime_version\.ValidateProtobufRuntimeVersion\(.*?^\)\n",
    r"^_sym_db = _symbol_database\.Default\(\)\n",
)


def generate(destination: Path) -> list[Path]:
    """Writes the modules of all `.proto` files of this folder into `destination` and returns their paths.

    Raises RuntimeError when protoc refuses a file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch, "sources", PACKAGE)
        sources.mkdir(parents=True)
        for proto in HERE.glob("*.proto"):
            shutil.copy(proto, sources)
        output = Path(scratch, "output")
        output.mkdir()
        targets = [f"--python_out={output}", f"--pyi_out={output}"]
        names = sorted(str(PACKAGE / proto.name) for proto in sources.glob("*.proto"))
        # A process of its own: protoc and TensorFlow do not live in one.
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{Path(scratch, 'sources')}", *targets, *names]
        if subprocess.run(command).returncode != 0:
            raise RuntimeError("protoc failed: its message is above")
        written = []
        for module in sorted((output / PACKAGE).iterdir()):
            text = module.read_text()
            if module.suffix == ".py":
                text = text.replace(
                    "from google.protobuf import descriptor_pool as _descriptor_pool",
                    "from bookserve.serving.wire.pool import POOL as _POOL",
                ).replace("_descriptor_pool.Default()", "_POOL")
                for unwanted in _DEFAULT_POOL_AND_VERSION_CHECK:
                    text = re.sub(unwanted, "", text, flags=re.MULTILINE | re.DOTALL)
            target = destination / module.name
            target.write_text(text)
            written.append(target)
        return written


if __name__ == "__main__":
    generate(HERE)

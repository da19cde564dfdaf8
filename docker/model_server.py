#!/opt/bookserve/bin/python -IS
"""The entry point of the model server's image: ports and model folders as TensorFlow Serving's image has them.

MODEL_NAME set: that one model below MODEL_BASE_PATH. Not set: all of them. Arguments are flags of the server;
--model_config_file and --model_base_path among them say instead what is served.
"""

import os
import sys


def main() -> None:
    """Becomes `bookserve model-server`."""
    folder, name, flags = os.environ["MODEL_BASE_PATH"], os.environ["MODEL_NAME"], sys.argv[1:]
    if not any(flag.startswith("--model_base_path=") for flag in flags):
        served = [f"--model_name={name}", f"--model_base_path={folder}/{name}"] if name else [f"--model_root={folder}"]
        flags = [*served, *flags]
    os.execvp("bookserve", ["bookserve", "model-server", "--port=8500", "--rest_api_port=8501", *flags])


if __name__ == "__main__":
    main()

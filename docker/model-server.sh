#!/bin/sh
# The entry point of the model server's image: ports and model folders as TensorFlow Serving's image has them.
# MODEL_NAME set: that one model below MODEL_BASE_PATH. Not set: all of them. Arguments are flags of the server;
# --model_config_file and --model_base_path among them say instead what is served.
set -eu

case " $*" in
    *" --model_base_path="*) ;;
    *)
        if [ -n "${MODEL_NAME}" ]; then
            set -- "--model_name=${MODEL_NAME}" "--model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME}" "$@"
        else
            set -- "--model_root=${MODEL_BASE_PATH}" "$@"
        fi
        ;;
esac
exec bookserve model-server --port=8500 --rest_api_port=8501 "$@"

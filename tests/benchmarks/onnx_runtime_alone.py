"""ONNX Runtime without any server: what a server on the same cores cannot reach."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

_BATCH = 16  # with 8 and 32 it is no faster


def pictures_a_second(graph: Path, picture: tuple[int, ...], seconds: int) -> float:
    """With a thread for each core, in batches of 16."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options)
    batch = np.zeros((_BATCH, *picture), np.float32)
    end = time.monotonic() + seconds

    def run(_: int) -> int:
        batches = 0
        while time.monotonic() < end:
            session.run(None, {"x": batch})
            batches += 1
        return batches

    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(run, range(threads))) * _BATCH / seconds

"""`bookserve batch --ray` on a cluster of two nodes on this machine, one of which is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_networks
from click.testing import Result

from batch_models import DIGITS

PROGRAM = """
from bookserve.serving.batch import run
from bookserve.clients.command_line import main
run._PART_ROWS = 200
main()
"""


def test_the_line_that_installs_ray_is_told(
    batch: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in.csv").write_text("1,2\n")
    done = batch("flats", tmp_path / "in.csv", tmp_path / "out.csv", "--ray", "127.0.0.1:6379")
    assert done.exit_code == 1
    assert "pip install 'bookserve[ray]'" in done.output
    done = batch("flats", tmp_path / "in.csv", tmp_path / "out.csv", "--ray", "x:1", "--server", "x:1")
    assert done.exit_code == 2
    assert "one of --server and --ray" in done.output


def copies(raylet: int, doing: bytes = b"ray::Copy") -> list[int]:
    """The processes below a node's main process that hold a copy of the model, which Ray names by what they do."""
    found = []
    for child in map(int, Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()):
        if doing in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(child)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own code
def test_a_node_that_is_killed_loses_no_row(store: Path, tmp_path: Path) -> None:
    utilities = pytest.importorskip("ray.cluster_utils", reason="pip install 'bookserve[ray]'")
    images, _ = small_networks.pictures(20_000, 5)
    source, output = tmp_path / "in.ndjson", tmp_path / "out.ndjson"
    source.write_text("\n".join(json.dumps(image.tolist()) for image in images))
    cluster = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")  # not where the command runs
        (raylet,) = (process.process.pid for process in node.all_processes["raylet"])
        command = [sys.executable, "-c", PROGRAM, "batch", "digits", source, output, "--models-dir", store]
        command += ["--ray", cluster.address, "--batch-size", "4"]
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(list(map(str, command)), stderr=said, stdout=said, text=True)
        end = time.monotonic() + 120
        while not copies(raylet, b"ray::Copy.run"):  # the node answers rows
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < end
            time.sleep(0.001)
        held = copies(raylet)
        cluster.remove_node(node, allow_graceful=False)
        for pid in held:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
        assert not output.exists()
        assert process.wait(200) == 0, (tmp_path / "said").read_text()
    finally:
        cluster.shutdown()
    assert "2 at once" in (tmp_path / "said").read_text()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["line"] for row in rows] == list(range(1, 20_001))
    import onnxruntime

    graph = str(store / "digits/1/assets.extra/model.onnx")
    wanted = np.argmax(onnxruntime.InferenceSession(graph).run(None, {"images": images})[0], axis=1)
    assert [row["class"] for row in rows] == [DIGITS.labels[place] for place in wanted]

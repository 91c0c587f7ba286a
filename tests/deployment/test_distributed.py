"""DDP and FSDP2 with two gloo processes give what one process gives."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (distributed.is_available() and distributed.is_gloo_available()), reason="this PyTorch has no gloo"
    ),
]
HERE = Path(__file__).parent


def run(script: Path, *arguments: str) -> None:
    """Run a script in two processes, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        shared["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    path = tmp_path_factory.mktemp("distributed") / "seen.json"
    run(HERE / "two_processes.py", str(path))
    return json.loads(path.read_text())


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_gradients_and_names_are_those_of_one_process(seen: dict[str, dict[str, Any]], kind: str, way: str) -> None:
    assert seen[kind][f"{way} gradients"] < 1e-5
    assert seen[kind][f"{way} state"] == seen[kind]["own state"]


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_state_dicts_travel_to_shards_and_back(seen: dict[str, dict[str, Any]], kind: str) -> None:
    assert seen[kind]["round trip"] == 0
    assert "has a plain classifier at '6'" in seen[kind]["plain checkpoint"]
    assert seen[kind]["unchanged"]


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_head_sharded_before_it_has_values_starts_at_its_text(seen: dict[str, dict[str, Any]], kind: str) -> None:
    assert seen[kind]["late start"] == 0


@pytest.mark.parametrize("action", ["wrap", "unwrap", "fuse"])
def test_layers_inside_ddp_and_fsdp_are_not_swapped(seen: dict[str, dict[str, Any]], action: str) -> None:
    for kind in ("cosine", "linear"):
        assert f"{action} the inner model (.module) first, then distribute it" in seen[kind][f"ddp {action}"]
        assert f"sharded by FSDP; {action} it first, then shard it" in seen[kind][f"fsdp {action}"]


def test_the_example_trains_as_one_process_does(example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason='needs the extra "demo"')
    script, path = example("train_distributed"), tmp_path / "weights.safetensors"
    run(HERE.parents[1] / "examples" / "train_distributed.py", "--steps", "4", "--shard", "--output", str(path))
    single = script.build()
    before = {name: tensor.clone() for name, tensor in single.state_dict().items()}
    script.train(single, *script.digits(seed=0)[0].tensors, steps=4)
    for name, tensor in load_file(path).items():
        expected = single.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)
        assert (expected - before[name]).abs().max() > 1e-4, name

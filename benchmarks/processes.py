"""Efficiency of two processes against one, one thread each: a campaign of ResNet-20 through the command line.

    pip install -e ".[results]" && python benchmarks/processes.py

Efficiency is the time of one process divided by the number of processes times their time; starting Python, loading the
model and recording it count. The merged results must be equal, byte for byte.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from resnet20 import ResNet20


def model() -> torch.nn.Module:
    """Return the model of the campaign."""
    torch.manual_seed(0)
    return ResNet20().eval()


def run(folder: Path, data: Path, processes: int, trials_per_site: int) -> float:
    """Run a campaign in some processes and merge it; return the seconds that the processes took."""
    command = [sys.executable, "-m", "resilient_heads", "campaign", "--model", f"{__file__}:model", "--data", str(data)]
    command += ["--protocol", "raw", "--trials-per-site", str(trials_per_site), "--output", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    started = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for rank in range(processes)
    ]
    if any(process.wait() for process in started):
        raise SystemExit("a process failed")
    seconds = time.perf_counter() - start
    if processes > 1:
        subprocess.run([sys.executable, "-m", "resilient_heads", "merge", str(folder)], check=True, capture_output=True)
    return seconds


def main() -> None:
    """Print the efficiency, and whether the merged results are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials-per-site", type=int, default=2048, help="trials at each of the 20 sites")
    args = parser.parse_args()
    images = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model()(images).argmax(dim=1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images.npz"
        np.savez(data, images=images.numpy(), labels=labels.numpy())
        seconds = [run(Path(folder) / str(count), data, count, args.trials_per_site) for count in (1, 2)]
        results = [(Path(folder) / str(count) / "result.parquet").read_bytes() for count in (1, 2)]
    print(f"one process {seconds[0]:.1f} s, two {seconds[1]:.1f} s: efficiency {seconds[0] / seconds[1] / 2:.0%}")
    print("merged results are", "equal" if results[0] == results[1] else "NOT EQUAL")


if __name__ == "__main__":
    main()

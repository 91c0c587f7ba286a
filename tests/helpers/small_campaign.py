"""A small model, its images and a campaign on them, for processes that are started and killed."""

import os
import signal
import stat
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads import cli


class Net(nn.Module):
    """Two layers. Each forward pass sleeps for NET_SLEEP_MS milliseconds, an environment variable."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(float(os.environ.get("NET_SLEEP_MS", "0")) / 1000)
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().eval()


def labelled(count: int = 12) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, net()(images).argmax(dim=1)


def campaign(output: Path | None, **options: object) -> rh.CampaignResult:
    settings: dict = {
        "protocol": "raw",
        "trials_per_site": 90,
        "batch_size": 4,
        "chunk_size": 8,
        "progress": False,
        **options,
    }
    if "design" in options:
        del settings["trials_per_site"]
    model, data = settings.pop("model", None) or net(), settings.pop("data", None) or labelled()
    return rh.run_campaign(model, data, output=output, **settings)


def arguments(folder: Path) -> list[str]:
    """Write the images beside ``folder`` and return the command line of the same campaign."""
    images, labels = labelled()
    arrays = folder.parent / "images.npz"
    if not arrays.exists():
        np.savez(arrays, images=images.numpy(), labels=labels.numpy())
    words = f"campaign --model {__file__}:net --data {arrays} --protocol raw --trials-per-site 90 --batch-size 4"
    return [*words.split(), "--chunk-size", "8", "--quiet", "--output", str(folder)]


def kill_at_sync(number: int) -> None:
    """Kill this process at its n-th ``fsync``, after cutting the file that it syncs to half its size."""
    sync, seen = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = fsync


def in_a_process(words: list[str], environment: dict[str, str]) -> None:
    """Run a command line in this process and exit with its code."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    if "KILL_AT_SYNC" in environment:
        kill_at_sync(int(environment["KILL_AT_SYNC"]))
    os._exit(cli.main(words))


def files(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

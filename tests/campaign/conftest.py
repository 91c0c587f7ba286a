from pathlib import Path

import pytest

from helpers.small_campaign import campaign, files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted campaign; do not write to it."""
    folder = tmp_path_factory.mktemp("whole") / "campaign"
    campaign(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    copy = tmp_path / "campaign"
    for name, content in files(whole).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    return copy

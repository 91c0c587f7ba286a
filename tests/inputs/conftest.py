"""Pictures on disk."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of four pictures each, of different sizes."""
    image = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 80, size=(40 + number, 50, 3), dtype=np.uint8)
            pixels[..., label] += 150
            image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"

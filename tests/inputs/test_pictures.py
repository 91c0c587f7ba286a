"""A picture keeps the values of its file in every mode that Pillow opens, or is refused by name."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resilient_heads.errors import DataError
from resilient_heads.inputs.pictures import read_picture

Image = pytest.importorskip("PIL.Image")
ImageFile = pytest.importorskip("PIL.ImageFile")

GREY = np.array([[0, 1, 7, 100, 254, 255]], dtype=np.uint8)
COLOURS = np.array([[[0, 1, 2], [3, 255, 254], [10, 20, 30], [200, 0, 99]]], dtype=np.uint8)
DEEP = np.array([[0, 128, 129, 257, 4096, 32896, 65534, 65535]], dtype=np.uint16)
DEEP_IN_8_BITS = [0, 0, 1, 1, 16, 128, 255, 255]  # rounded v / 257


def grey(values: object) -> np.ndarray:
    """Return grey values as pixels with three equal channels."""
    return np.repeat(np.asarray(values, dtype=np.uint8).reshape(1, -1, 1), 3, axis=2)


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    alpha = np.array([0, 1, 128, 255, 0, 7], dtype=np.uint8)[: pixels.shape[1]]
    return np.concatenate([pixels.reshape(*pixels.shape[:2], -1), alpha[None, :, None]], axis=2)


def saved(path: Path, picture: object, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[attr-defined]
    return path


def palette(path: Path, **options: object) -> Path:
    picture = Image.fromarray(np.array([[0, 1, 2, 3]], dtype=np.uint8), mode="P")
    picture.putpalette(COLOURS.tobytes())
    return saved(path, picture, **options)


def png(bits: int, kind: int, rows: bytes, width: int, height: int) -> bytes:
    """Return a PNG of any depth and colour type; Pillow writes few of them."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pgm(values: np.ndarray, largest: int) -> bytes:
    return f"P5 {values.shape[1]} {values.shape[0]} {largest}\n".encode() + values.tobytes()


CMYK = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [10, 20, 30, 40], [0, 0, 0, 255]]], dtype=np.uint8)
CMYK_IN_RGB = [[[255, 255, 255], [0, 255, 255], [207, 198, 190], [0, 0, 0]]]  # (255 - ink) * (255 - black) / 255
KEPT: dict[str, tuple[Callable[[Path], Path], object]] = {
    "1.png": (lambda p: saved(p, Image.fromarray(GREY > 100)), grey([0, 0, 0, 0, 255, 255])),
    "l.png": (lambda p: saved(p, Image.fromarray(GREY)), grey(GREY)),
    "l-transparent.png": (lambda p: saved(p, Image.fromarray(GREY), transparency=7), grey(GREY)),
    "l.tif": (lambda p: saved(p, Image.fromarray(GREY)), grey(GREY)),
    "l.bmp": (lambda p: saved(p, Image.fromarray(GREY)), grey(GREY)),
    "la.png": (lambda p: saved(p, Image.fromarray(with_alpha(GREY))), grey(GREY)),
    "p.png": (palette, COLOURS),
    "p.gif": (palette, COLOURS),
    "p-transparent.png": (lambda p: palette(p, transparency=1), COLOURS),
    "p-alphas.png": (lambda p: palette(p, transparency=bytes([0, 9, 255, 1])), COLOURS),
    "pa.tif": (lambda p: saved(p, Image.open(palette(p.with_suffix(".png"))).convert("PA")), COLOURS),
    "rgb.png": (lambda p: saved(p, Image.fromarray(COLOURS)), COLOURS),
    "rgb.webp": (lambda p: saved(p, Image.fromarray(COLOURS), lossless=True), COLOURS),
    "rgb.ppm": (lambda p: saved(p, Image.fromarray(COLOURS)), COLOURS),
    "rgba.png": (lambda p: saved(p, Image.fromarray(with_alpha(COLOURS))), COLOURS),
    "rgbx.tif": (lambda p: saved(p, Image.fromarray(with_alpha(COLOURS), mode="RGBX")), COLOURS),
    "cmyk.tif": (lambda p: saved(p, Image.fromarray(CMYK, mode="CMYK")), CMYK_IN_RGB),
    "16.png": (lambda p: saved(p, Image.fromarray(DEEP)), grey(DEEP_IN_8_BITS)),
    "16.tif": (lambda p: saved(p, Image.fromarray(DEEP)), grey(DEEP_IN_8_BITS)),
    "16-big.tif": (
        lambda p: saved(p, Image.frombytes("I;16B", (8, 1), DEEP.astype(">u2").tobytes())),
        grey(DEEP_IN_8_BITS),
    ),
    "16.pgm": (lambda p: written(p, pgm(DEEP.astype(">u2"), 65535)), grey(DEEP_IN_8_BITS)),
    "12.pgm": (lambda p: written(p, pgm(np.array([[0, 2048, 4095]], dtype=">u2"), 4095)), grey([0, 128, 255])),
    "4.pgm": (lambda p: written(p, pgm(np.array([[0, 8, 15]], dtype=np.uint8), 15)), grey([0, 136, 255])),
    "2.png": (lambda p: written(p, png(2, 0, b"\0" + bytes([0b00011011]), 4, 1)), grey([0, 85, 170, 255])),
    "black-16.png": (lambda p: saved(p, Image.fromarray(DEEP * 0)), grey([0] * 8)),
    "colours-16.png": (
        lambda p: written(p, png(16, 2, b"\0" + np.array([0, 257, 65535], dtype=">u2").tobytes(), 1, 1)),
        [[[0, 1, 255]]],
    ),
    "turned.png": (lambda p: saved(p, Image.fromarray(COLOURS), exif=_turned()), COLOURS),
    "profile.png": (lambda p: saved(p, Image.fromarray(COLOURS), icc_profile=b"not a profile"), COLOURS),
    "really-a-png.jpg": (lambda p: saved(p, Image.fromarray(COLOURS), format="PNG"), COLOURS),
    "one.png": (lambda p: saved(p, Image.fromarray(COLOURS[:, :1])), COLOURS[:, :1]),
    "long.png": (lambda p: saved(p, Image.fromarray(np.tile(COLOURS, (1, 25, 1)))), np.tile(COLOURS, (1, 25, 1))),
}


def _turned() -> object:
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns the picture by 90 degrees; training code reads it as it is stored
    return exif


@pytest.mark.parametrize("name", KEPT)
def test_values_are_kept(tmp_path: Path, name: str) -> None:
    write, expected = KEPT[name]
    picture = read_picture(write(tmp_path / name))
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), expected)


def animation(path: Path) -> Path:
    frames = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[:, ::-1])]
    return saved(path, frames[0], save_all=True, append_images=frames[1:])


def damaged(path: Path, place: int, *, keep: float = 1.0) -> Path:
    """Write a picture with one flipped bit, or cut."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, {".png": "PNG", ".jpg": "JPEG"}[path.suffix])
    content = bytearray(buffer.getvalue())
    content[place] ^= 1 if keep == 1 else 0
    return written(path, bytes(content[: int(len(content) * keep)]))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "32.tif": (lambda p: saved(p, Image.fromarray(np.array([[5, 70000]], dtype=np.int32))), "values of unknown range"),
    "float.tif": (lambda p: saved(p, Image.fromarray(np.array([[0.5, 1]], dtype=np.float32))), "mode F.*with 8 or 16"),
    "lab.tif": (lambda p: saved(p, Image.fromarray(COLOURS, mode="LAB")), "values of unknown range"),
    "12-bits.png": (
        lambda p: saved(p, Image.fromarray(DEEP // 16)),
        "no value above 4095, so its brightness is unclear",
    ),
    "8-bits.png": (lambda p: saved(p, Image.fromarray(DEEP // 257)), "no value above 255"),
    "moving.gif": (animation, "holds 2 pictures; expected one"),
    "moving.webp": (animation, "holds 2 pictures"),
    "moving.png": (animation, "holds 2 pictures"),
    "pages.tif": (animation, "holds 2 pictures"),
    "empty.png": (lambda p: written(p, b""), "cannot be decoded as a picture"),
    "text.jpg": (lambda p: written(p, b"version https://git-lfs.github.com/spec/v1\n"), "cannot be decoded"),
    "cut.png": (lambda p: damaged(p, 0, keep=0.6), "cannot be decoded"),
    "cut.jpg": (lambda p: damaged(p, 0, keep=0.6), "truncated"),
    "flipped-header.png": (lambda p: damaged(p, 18), "cannot be decoded"),
    "flipped-values.png": (lambda p: damaged(p, 900), "cannot be decoded"),
    "line.png": (lambda p: saved(p, Image.fromarray(np.zeros((1, 101, 3), dtype=np.uint8))), "101 x 1 pixels"),
    "post.png": (lambda p: written(p, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be decoded"),
    "bomb.png": (lambda p: written(p, png(8, 0, b"", 30000, 30000)), "DecompressionBombError"),
    "with\x1b[31m.png": (lambda p: written(p, b"x"), r"with\\x1b\[31m\.png cannot"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("truncated", [False, True], ids=["usual", "after another library allowed truncated files"])
def test_values_that_would_be_lost_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, truncated: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated)
    write, message = REFUSED[name]
    path = write(tmp_path / name)
    with pytest.raises(DataError, match=message) as error:
        read_picture(path)
    assert str(error.value).startswith(str(tmp_path))
    assert str(error.value).isprintable()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is truncated

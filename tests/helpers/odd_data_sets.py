"""Folders of pictures as they lie on real disks, drawn at random, and what a right reading of each one is."""

import json
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SIDE = 8
WORDS = ("airplane", "bird", "cat", "deer", "great white shark", "horse", "Käfer", "ship", "虎", "zebra crossing")


@dataclass
class Case:
    """One call of the command ``campaign``.

    Attributes:
        folder: Where everything of the case lies.
        options: Options of the command beside those that every case has.
        pixels: Right values of each picture, by its path.
        labels: Right class of each picture, by its path.
        refusals: Patterns of the errors that are right; none: the command must succeed.
        names: What was drawn, for the tally.
        classes: Number of the model's classes.
    """

    folder: Path
    options: list[str] = field(default_factory=list)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    classes: int = 2

    @property
    def data(self) -> Path:
        return self.folder / "data"


def draw_case(seed: int, folder: Path) -> Case:
    """Write a data set and a model file; equal seeds give equal cases."""
    rng = random.Random(seed)
    case = Case(folder)
    _name_classes(rng, case, _write_pictures(rng, case))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        hazard = rng.choice(sorted(HAZARDS))
        case.names.append(hazard)
        HAZARDS[hazard](rng, case)
    _write_model(rng, case)
    return case


def _write_pictures(rng: random.Random, case: Case) -> list[str]:
    """Write class folders with one to three pictures each, in any mode; return their names."""
    style = rng.choice(("words", "words", "numbers", "many numbers", "synsets"))
    count = 11 if style == "many numbers" else rng.randint(2, 5)
    names = {
        "words": lambda: rng.sample(WORDS, count),
        "numbers": lambda: [str(number) for number in range(count)],
        "many numbers": lambda: [str(number) for number in range(count)],
        "synsets": lambda: [f"n{number:08d}" for number in rng.sample(range(10**7), count)],
    }[style]()
    case.names.append(style)
    case.classes = count
    for name in names:
        for number in range(rng.randint(1, 3)):
            below = rng.choice(("", "", "images/", "a/b/"))
            path = case.data / name / f"{below}{number}{rng.choice(('.png', '.PNG', '.tif'))}"
            path.parent.mkdir(parents=True, exist_ok=True)
            case.pixels[str(path)] = draw_picture(rng, path)
    return names


def draw_picture(rng: random.Random, path: Path) -> np.ndarray:
    """Write a picture in a random mode and return its values ``(SIDE, SIDE, 3)``, worked out without Pillow."""
    from PIL import Image

    noise = np.random.default_rng(rng.getrandbits(32))
    mode = rng.choice(("RGB", "L", "1", "P", "LA", "RGBA", "16", "CMYK" if path.suffix == ".tif" else "RGB"))
    grey = noise.integers(0, 256, size=(SIDE, SIDE, 1), dtype=np.uint8)
    rgb = noise.integers(0, 256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    alpha = noise.integers(0, 256, size=(SIDE, SIDE, 1), dtype=np.uint8)
    options = {"format": {".png": "PNG", ".tif": "TIFF"}[path.suffix.lower()]}
    if mode == "RGB":
        Image.fromarray(rgb).save(path, **options)
    elif mode == "RGBA":
        Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(path, **options)
    elif mode == "L":
        Image.fromarray(grey[..., 0]).save(path, **options)
    elif mode == "LA":
        Image.fromarray(np.concatenate([grey, alpha], axis=2)).save(path, **options)
    elif mode == "1":
        Image.fromarray(grey[..., 0] > 127).save(path, **options)
        grey = (grey > 127).astype(np.uint8) * 255
    elif mode == "P":
        colours = noise.integers(0, 256, size=(256, 3), dtype=np.uint8)
        picture = Image.fromarray(grey[..., 0], mode="P")
        picture.putpalette(colours.tobytes())
        picture.save(path, **options)
        rgb = colours[grey[..., 0]]
    elif mode == "16":
        deep = noise.integers(0, 65536, size=(SIDE, SIDE), dtype=np.uint16)
        deep[0, 0] = 65535
        Image.fromarray(deep).save(path, **options)
        grey = np.rint(deep / 257).astype(np.uint8)[..., None]
    else:
        ink = np.concatenate([rgb, alpha], axis=2)
        Image.fromarray(ink, mode="CMYK").save(path, **options)
        scaled = (255 - ink[..., :3].astype(int)) * (255 - ink[..., 3:].astype(int))
        rgb = ((scaled + 128 + ((scaled + 128) >> 8)) >> 8).astype(np.uint8)
    return rgb if mode in ("RGB", "RGBA", "P", "CMYK") else np.repeat(grey, 3, axis=2)


def _name_classes(rng: random.Random, case: Case, names: list[str]) -> None:
    """Choose how the order of the classes is given, and note the right class of each picture."""
    how = rng.choice(("assumed", "assumed", "sort", "numeric", "index", "beside"))
    case.names.append(f"order: {how}")
    numbers = all(name.isdecimal() for name in names)
    order = {name: rank for rank, name in enumerate(sorted(names, key=int if numbers else None))}
    if how == "assumed" and len(names) > 10:
        case.refusals.append("the order is unclear: pass --sort numeric")
    elif how == "sort":
        case.options += ["--sort", "name"]
        order = {name: rank for rank, name in enumerate(sorted(names))}
    elif how == "numeric":
        case.options += ["--sort", "numeric"]
        if not numbers:
            case.refusals.append("--sort numeric needs folders that are numbers")
    elif how in ("index", "beside"):
        order = _index_file(rng, case, names, case.folder / "index.json" if how == "index" else None)
    for path in case.pixels:
        case.labels[path] = order[Path(path).relative_to(case.data).parts[0]]


def _index_file(rng: random.Random, case: Case, names: list[str], path: Path | None) -> dict[str, int]:
    """Write a file of class indices in one of its forms; one in four is wrong."""
    case.classes = len(names) + rng.randint(0, 3)
    order = dict(zip(names, rng.sample(range(case.classes), len(names)), strict=True))
    written = {rng.choice((name, name.upper(), name.replace(" ", "_"))): index for name, index in order.items()}
    forms = (
        lambda: json.dumps(written),
        lambda: json.dumps({str(index): name for name, index in written.items()}),
        lambda: json.dumps({str(index): ["x", name] for name, index in written.items()}),
    )
    wrong = {
        "lacks a name": (json.dumps(dict(list(written.items())[1:]) or {"x": 0}), "class folders have no name of"),
        "half": (forms[0]()[:-3], "gives no class indices"),
        "twice": (json.dumps(dict.fromkeys(written, 0)), "stands there twice"),
        "negative": (json.dumps(dict.fromkeys(written, -1)), "gives no class indices"),
        "text": ("cat\ndog\n", "gives no class indices"),
    }
    text = rng.choice(forms)()
    if all(index == 0 for index in order.values()) or rng.random() < 0.25:
        kind = rng.choice(sorted(wrong))
        text, message = wrong[kind]
        case.names.append(f"index {kind}")
        case.refusals.append(message)
    if path is not None:
        case.options += ["--class-index", str(path)]
    (path or case.data / "class_to_idx.json").write_text(text)
    return order


def _class_folder(rng: random.Random, case: Case) -> Path:
    return rng.choice(sorted(entry for entry in case.data.iterdir() if entry.is_dir() and entry.name[0] not in "._@"))


def _picture(rng: random.Random, case: Case) -> Path:
    return Path(rng.choice(sorted(case.pixels)))


def _leave_junk(rng: random.Random, case: Case) -> None:
    """Files and folders of other programs; none counts."""
    junk = (".ipynb_checkpoints/0.png", "__MACOSX/cat/0.png", ".DS_Store", "Thumbs.db", "stray.png", "@eaDir/0.png")
    for name in rng.sample(junk, 2):
        (case.data / name).parent.mkdir(parents=True, exist_ok=True)
        (case.data / name).write_bytes(b"junk")
    inside = ("._0.png", "boxes.txt", ".hidden/0.png", "desktop.ini", "0.xml")
    path = _class_folder(rng, case) / rng.choice(inside)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"junk")


def _write_refused(name: str, message: str, content: Callable[[], bytes]) -> Callable[[random.Random, Case], None]:
    """Return a hazard: one picture that must be refused."""

    def hazard(rng: random.Random, case: Case) -> None:
        path = _class_folder(rng, case) / f"odd-{rng.randrange(10**6)}{name}"
        path.write_bytes(content())
        case.refusals.append(message)

    return hazard


def _encoded(kind: str, values: np.ndarray, **options: object) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    pictures = [Image.fromarray(each) for each in (values if options.get("save_all") else [values])]
    more = {"append_images": pictures[1:]} if len(pictures) > 1 else {}
    pictures[0].save(buffer, kind, **options, **more)
    return buffer.getvalue()


def _cut(rng: random.Random, case: Case) -> None:
    path = _picture(rng, case)
    if path.is_file() and path.suffix.lower() == ".png":
        path.write_bytes(path.read_bytes()[: rng.randrange(60)])
        case.refusals.append("cannot be decoded as a picture")


def _flip(rng: random.Random, case: Case) -> None:
    """Flip a bit of a PNG's data, which its checksum shows."""
    path = _picture(rng, case)
    content = bytearray(path.read_bytes())
    start = content.find(b"IDAT")
    if path.suffix.lower() != ".png" or start < 0:
        return
    (length,) = struct.unpack(">I", content[start - 4 : start])
    content[start + 4 + rng.randrange(length)] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))
    case.refusals.append("cannot be decoded as a picture")


def _empty_class(rng: random.Random, case: Case) -> None:
    (case.data / "yyy").mkdir(exist_ok=True)
    case.refusals += [
        "holds no picture, so it is unclear",
        "class folders have no name of",
        "needs folders that are num",
    ]
    case.refusals += ["is unclear: pass --sort", "so it is unclear which they are"]
    if "--sort" in case.options and "name" in case.options:  # the user says that it counts
        case.refusals.clear()
        case.classes += 1
        names = sorted(entry.name for entry in case.data.iterdir() if entry.is_dir() and entry.name[0] not in "._@")
        for path in case.labels:
            case.labels[path] = names.index(Path(path).relative_to(case.data).parts[0])


def _more_outputs(rng: random.Random, case: Case) -> None:
    """A model with more classes than folders, whose order is then unclear."""
    case.classes += 3
    if "order: assumed" in case.names:
        case.refusals.append("so it is unclear which they are")


def _other_size(rng: random.Random, case: Case) -> None:
    path = _class_folder(rng, case) / "wide.png"
    path.write_bytes(_encoded("PNG", np.zeros((SIDE, SIDE + 1, 3), np.uint8)))
    case.refusals.append("differ in size")


def _link(name: str, target: str, message: str) -> Callable[[random.Random, Case], None]:
    def hazard(rng: random.Random, case: Case) -> None:
        path = _class_folder(rng, case) / name
        if not os.path.lexists(path):
            path.symlink_to(target)
        case.refusals.append(message)

    return hazard


def _repeat(rng: random.Random, case: Case) -> None:
    """A second name for a picture of the same class; it counts once."""
    path = _picture(rng, case)
    other = path.with_name(f"zz-{path.name}")
    if rng.random() < 0.5:
        other.symlink_to(path.name)
    else:
        os.link(path, other)


def _two_classes(rng: random.Random, case: Case) -> None:
    first, second = sorted(case.data.iterdir())[-2:]
    if first.is_dir() and second.is_dir() and first.name[0] not in "._@" and second.name[0] not in "._@":
        pictures = [Path(path) for path in case.pixels if Path(path).is_relative_to(first)]
        if pictures and not (second / "shared.png").exists():
            (second / "shared.png").symlink_to(pictures[0])
            case.refusals.append("are one file in two classes")


def _splits(rng: random.Random, case: Case) -> None:
    """The folder above a training and a validation set."""
    (case.folder / "sets" / "train").mkdir(parents=True, exist_ok=True)
    if not (case.folder / "sets" / "val").exists():
        (case.folder / "sets" / "val").symlink_to(case.data)
    case.options += ["--data", str(case.folder / "sets")]
    case.refusals.append("holds splits of a data set")


def _option(words: list[str], message: str) -> Callable[[random.Random, Case], None]:
    def hazard(rng: random.Random, case: Case) -> None:
        case.options += words
        case.refusals.append(message)

    return hazard


def _model(source: str, message: str) -> Callable[[random.Random, Case], None]:
    def hazard(rng: random.Random, case: Case) -> None:
        (case.folder / "bad.py").write_text(source)
        case.options += ["--model", f"{case.folder / 'bad.py'}:net"]
        case.refusals.append(message)

    return hazard


_FLOATS = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
_DIM = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
HAZARDS: dict[str, Callable[[random.Random, Case], None]] = {
    "junk": _leave_junk,
    "float": _write_refused(".tif", "values of unknown range", lambda: _encoded("TIFF", _FLOATS)),
    "32 bits": _write_refused(".tif", "values of unknown range", lambda: _encoded("TIFF", _FLOATS.astype(np.int32))),
    "12 of 16 bits": _write_refused(".png", "its brightness is unclear", lambda: _encoded("PNG", _DIM)),
    "animation": _write_refused(
        ".gif", "holds 2 pictures", lambda: _encoded("GIF", np.stack([_DIM, _DIM.T]).astype(np.uint8), save_all=True)
    ),
    "zero bytes": _write_refused(".jpg", "cannot be decoded", lambda: b""),
    "a pointer": _write_refused(".png", "cannot be decoded", lambda: b"version https://git-lfs.github.com/spec/v1\n"),
    "a script": _write_refused(".png", "cannot be decoded", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    "a line": _write_refused(".bmp", "101 x 1 pixels", lambda: _encoded("BMP", np.zeros((1, 101), np.uint8))),
    "cut": _cut,
    "flip": _flip,
    "empty class": _empty_class,
    "more outputs": _more_outputs,
    "other size": _other_size,
    "link to nothing": _link("lost.png", "nowhere.png", "leads to nothing"),
    "link up": _link("up", "..", "leads to a folder in which it lies"),
    "link to itself": _link("self.png", "self.png", "leads in a circle"),
    "link to a device": _link("zero.png", "/dev/zero", "is no file"),
    "repeated picture": _repeat,
    "two classes": _two_classes,
    "splits": _splits,
    "absent data": _option(["--data", "absent"], "There is no absent"),
    "absent index": _option(["--model", "absent.py:net"], "There is no file absent"),
    "no images": _option(["--images", "0"], "--images must be a whole number of at least 1"),
    "one mean": _option(["--mean", "0", "0", "--std", "1", "1"], "--mean has 2 numbers; pictures have 3 channels"),
    "mean of bytes": _option(["--mean", "124", "116", "104", "--std", "58", "57", "57"], r"are for values in \[0, 1\]"),
    "deviation of bytes": _option(["--mean", "0", "0", "0", "--std", "255", "255", "255"], "by 255"),
    "ends": _model("import sys\nsys.exit(0)\n", "it ended the program"),
    "fails": _model("def net():\n    return 1 / 0\n", "failed: ZeroDivisionError"),
    "no factory": _model("def met():\n    pass\n", "has no function 'net'"),
    "no model": _model("def net():\n    return {}\n", "must return a torch.nn.Module"),
    "features": _model(
        "from torch import nn\ndef net():\n    return nn.Conv2d(3, 4, 3)\n",
        "must give logits of shape|one logit vector",
    ),
    "fails late": _model(
        "from torch import nn\nclass net(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 2)\n"
        "    def forward(self, x):\n        return {}['key']\n",
        "KeyError",
    ),
}


def _write_model(rng: random.Random, case: Case) -> None:
    """Write a model that gives every image the class of one of them, so that a campaign can run."""
    favourite = case.labels[rng.choice(sorted(case.labels))]
    (case.folder / "net.py").write_text(
        "from __future__ import annotations\nimport torch\nfrom torch import nn\n\n\ndef net() -> nn.Module:\n"
        f"    model = nn.Sequential(nn.Flatten(), nn.Linear({3 * SIDE * SIDE}, {case.classes}))\n"
        f"    model[1].weight.data.mul_(0.01)\n    model[1].bias.data[{favourite}] = 9.0\n    return model\n"
    )

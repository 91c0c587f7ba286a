"""Parsing takes time in proportion to the size of a file, and nothing in it raises a foreign error."""

import gc
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import resilient_heads as rh
from resilient_heads.errors import ResilientHeadsError
from resilient_heads.heads.pretrained.config import HeadConfig
from resilient_heads.text.descriptions.answers import AnswerFile, clean_answer
from resilient_heads.text.prebuilt.manifest import Manifest


def repeated(unit: str, size: int) -> str:
    return unit * (size // len(unit) + 1)


def table(entry: Callable[[int], str], size: int) -> str:
    return "{" + ",".join(entry(row) for row in range(size // len(entry(10_000)))) + "}"


def spelled(row: int) -> str:
    """Spell one name in 32,768 ways that differ in case."""
    return "".join("B" if row >> bit & 1 else "b" for bit in range(15))


HOSTILE: dict[str, Callable[[int], str]] = {
    "repeated keys": lambda n: "{" + repeated('"a":["x y"],', n)[:-1] + "}",
    "many keys, the first again at the end": lambda n: table(lambda i: f'"c{i}":["s {i}"]', n)[:-1] + ',"c0":["t"]}',
    "many keys": lambda n: table(lambda i: f'"c{i}":["s {i}"]', n),
    "names that match each other": lambda n: table(lambda i: f'"{spelled(i % 2**15)}{i >> 15}":["s"]', n),
    "names of blanks": lambda n: table(lambda i: f'"a{"_" * (i % 40)}{"-" * (i // 40 % 40)}{i}":["s"]', n),
    "deep": lambda n: "[" * n,
    "deep and closed": lambda n: '{"a":' * (n // 7) + '["s"]' + "}" * (n // 7),
    "many of some depth": lambda n: table(lambda i: f'"k{i}":' + '{"a":' * 300 + '["s"]' + "}" * 300, n),
    "huge number": lambda n: '{"a":' + "9" * n + "}",
    "huge exponent": lambda n: '{"a":[1e' + "9" * n + "]}",
    "many numbers": lambda n: '{"a":[' + repeated("1,", n)[:-1] + "]}",
    "long text": lambda n: '{"a":["' + repeated("x y ", n) + '"]}',
    "blanks": lambda n: '{"a":["' + " " * n + 'b"]}',
    "accents": lambda n: '{"a":["a' + "\u0301\u0316" * (n // 4) + '"]}',
    "one sentence many times": lambda n: '{"a":[' + repeated('"s",', n)[:-1] + "]}",
    "one class many times": lambda n: "[" + repeated('{"name":"c","descriptions":["s"]},', n)[:-1] + "]",
    "not closed": lambda n: '{"a":["' + "x" * n,
    "backslashes": lambda n: '{"a":["' + "\\\\" * (n // 2) + '"]}',
    "apologies": lambda n: repeated("unfortunately, ", n),
    "answers": lambda n: repeated(json.dumps({"class": "c", "question": "q", "answer": "a b"}) + "\n", n),
}


QUICK = ("many keys, the first again at the end", "deep", "huge number")


CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in HOSTILE]


def described(content: bytes, folder: Path) -> None:
    rh.ClassDescriptions.from_bytes(content)


def described_by_name(content: bytes, folder: Path) -> None:
    rh.ClassDescriptions.from_bytes(content, [f"c{row}" for row in range(5000)])


def embedded(content: bytes, folder: Path) -> None:
    metadata = {"resilient_heads": content.decode()}
    header = {"__metadata__": metadata, "vectors": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
    written = json.dumps(header).encode()
    rh.ClassEmbeddings.from_bytes(struct.pack("<Q", len(written)) + written + bytes(4))


def written(name: str, content: bytes, folder: Path) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def answers(content: bytes, folder: Path) -> None:
    with AnswerFile.open(written("answers.jsonl", content, folder)):
        pass


PARSERS: dict[str, Callable[[bytes, Path], object]] = {
    "descriptions": described,
    "descriptions by name": described_by_name,
    "manifest": lambda content, folder: Manifest.from_bytes(content),
    "published folder": lambda content, folder: rh.text.verify_folder(written("manifest.json", content, folder).parent),
    "head": lambda content, folder: HeadConfig.read(written("config.json", content, folder)),
    "embeddings": embedded,
    "answers": answers,
    "answer": lambda content, folder: clean_answer(content.decode()),
    "index of weights": lambda content, folder: rh.load_checkpoint(
        torch.nn.Linear(1, 1), written("a.index.json", b'{"weight_map":' + content + b"}", folder)
    ),
}


def seconds(parse: Callable[[bytes, Path], object], content: bytes, folder: Path) -> float:
    """Return the CPU seconds of one call, which may refuse the content."""
    gc.collect()
    gc.disable()  # A collection takes as long as this process has objects.
    began = time.process_time()
    try:
        parse(content, folder)
    except (ResilientHeadsError, FileNotFoundError) as error:
        said = str(error)
    else:
        said = ""
    finally:
        spent = time.process_time() - began
        gc.enable()
    assert len(said) < 2000
    return spent


@pytest.mark.filterwarnings("ignore::resilient_heads.errors.DuplicateClassWarning")
@pytest.mark.parametrize("name", CASES)
def test_hostile_json_is_parsed_or_refused_in_proportion_to_its_size(tmp_path: Path, name: str) -> None:
    """Four times the size takes sixteen times as long where time is quadratic; 0.6 s are free."""
    small, large = (HOSTILE[name](size).encode() for size in (250_000, 1_000_000))
    for parse in PARSERS.values():
        first = seconds(parse, small, tmp_path)
        assert seconds(parse, large, tmp_path) < 8 * first + 0.6

"""How two records of campaigns differ, and what to do about it."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

_SETTINGS = {
    "autocast": "run inside the same torch.autocast, or outside any",
    "default_dtype": "call torch.set_default_dtype({then})",
    "float32_precision": "set the same torch.set_float32_matmul_precision and torch.backends...fp32_precision",
    "denormals": "call torch.set_flush_denormal accordingly",
    "deterministic_algorithms": "call torch.use_deterministic_algorithms accordingly",
    "mkldnn": "set torch.backends.mkldnn accordingly",
    "cudnn": "set torch.backends.cudnn accordingly",
    "attention": "enable the same kernels with torch.nn.attention.sdpa_kernel",
    "quantized_engine": "set torch.backends.quantized.engine = {then!r}",
}
"""Settings of PyTorch in the environment, and how a user makes each equal."""

DECISIVE_ENVIRONMENT = ("resilient_heads", "torch", "device", "cpu", "threads", *_SETTINGS)
"""Entries of the environment that can change the last bit of a result, so all parts of a campaign share them."""

_ONE_MODEL_ON_ONE_MACHINE = frozenset(
    {"model", "model_sha256", "data_sha256", "torch", "device", "cpu", "threads", "batch_size", *_SETTINGS}
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of a record.

    Attributes:
        advice: What the user does to make the entry equal; ``{then}`` stands for the recorded value.
        follows_from: Entries that usually explain a difference in this one. If one of them differs too, the difference
            in this entry is not reported.
    """

    advice: str
    follows_from: frozenset[str] = frozenset()


_ENTRIES = {
    "seed": _Entry("pass seed={then}, or --seed {then}"),
    "trials_per_site": _Entry("pass trials_per_site={then}, or --trials-per-site {then}"),
    "design": _Entry("pass the same design="),
    "fault": _Entry("pass the same fault="),
    "until": _Entry("pass the same until=, or --until"),
    "batch_size": _Entry("pass batch_size={then}, or --batch-size {then}"),
    "chunk_size": _Entry("pass chunk_size={then}, or --chunk-size {then}"),
    "protocol": _Entry("pass the same protocol"),
    "model": _Entry("pass the same model"),
    "model_sha256": _Entry("load the same weights"),
    "data_sha256": _Entry("pass the same images and labels, in the same order"),
    "calibration_sha256": _Entry(
        "pass the same calibration images, in the same order", follows_from=frozenset({"protocol"})
    ),
    "resilient_heads": _Entry("install that version"),
    "torch": _Entry("install that version"),
    "device": _Entry("run on the same device"),
    "cpu": _Entry("run on a processor with the same vector instructions"),
    "threads": _Entry("set OMP_NUM_THREADS={then}"),
    **{name: _Entry(advice) for name, advice in _SETTINGS.items()},
    "sites": _Entry(
        "pass the same layers and the same model",
        follows_from=_ONE_MODEL_ON_ONE_MACHINE | {"calibration_sha256", "protocol"},
    ),
    "excluded": _Entry("pass the same layers and the same model", follows_from=_ONE_MODEL_ON_ONE_MACHINE | {"sites"}),
    "coverage": _Entry("pass the same model", follows_from=_ONE_MODEL_ON_ONE_MACHINE | {"sites", "excluded"}),
    "uninjectable": _Entry("pass the same model", follows_from=_ONE_MODEL_ON_ONE_MACHINE),
    "golden_sha256": _Entry(
        "the model computes something else on the same images; run on the same kind of machine",
        follows_from=_ONE_MODEL_ON_ONE_MACHINE | {"protocol"},
    ),
}


def decisive(record: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a record that decide every bit of a result, by the names that a user knows.

    The sites stand for the choices ``layers`` and ``modules`` that led to them.
    """
    entries = {name: value for name, value in record.items() if name not in ("config", "environment")}
    entries |= {name: value for name, value in record["config"].items() if name not in ("layers", "modules")}
    entries |= {name: record["environment"].get(name) for name in DECISIVE_ENVIRONMENT}
    design = entries.get("design")
    if isinstance(design, dict) and design.get("kind") == "uniform":
        entries["trials_per_site"] = entries.pop("design").get("trials_per_site")
    return entries


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a sentence with advice for each decisive difference between two records; none for one campaign."""
    first, second = decisive(then), decisive(now)
    differing = {name for name in {*first, *second} if _text(first.get(name)) != _text(second.get(name))}
    sentences = []
    for name in sorted(differing):
        entry = _ENTRIES.get(name, _Entry(f"pass {name}={{then}}"))
        if not entry.follows_from & differing:
            before, after = _short(first.get(name)), _short(second.get(name))
            sentences.append(f"{name} is {before} there and {after} now ({entry.advice.format(then=before)})")
    return sentences


def _short(value: Any) -> str:
    """Return a value as an error shows it."""
    if isinstance(value, list):
        names = [entry.get("name", "?") if isinstance(entry, dict) else str(entry) for entry in value]
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return f"{len(names)} ({shown}), sha256 {hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]}"
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text


def _text(value: Any) -> str:
    """Return a value as text to compare it by, since NaN differs from itself."""
    return json.dumps(value, sort_keys=True)

"""Wrap, unwrap and fuse every torchvision classifier and one model per timm and transformers family, without weights.

    python -m tests.sweep [torchvision] [timm] [transformers]

Models are built on the meta device from their default configurations, so the table costs neither memory nor a download.
A family that cannot be built there is listed with the reason, not left out.
"""

import gc
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resilient_heads.errors import ModelError
from resilient_heads.heads.locate import find_classifiers, find_heads
from resilient_heads.heads.text_guided import FusedCosineHead
from resilient_heads.heads.trace import trace
from resilient_heads.heads.wrap import fuse, unwrap_model, wrap_model
from resilient_heads.text.embeddings import ClassEmbeddings

_INITIALISERS = ("normal_", "uniform_", "fill_", "zero_", "add_", "mul_", "clamp_", "erfinv_")


class OnMeta(TorchFunctionMode):
    """Build a model whose weights take no memory and whose constructor may still compute with numbers.

    ``torch.device("meta")`` would do but for models that work their widths out with tensors, as RegNet does.
    """

    _skipped = frozenset(getattr(Tensor, name) for name in _INITIALISERS)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        elif func in self._skipped and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Row:
    """What became of one model."""

    model: str
    outcome: str
    heads: str = ""
    features: str = ""
    classes: int = 0
    shape: str = ""
    unwrapped: str = ""
    fused: str = ""


def check(name: str, model: nn.Module) -> Row:
    """Wrap, unwrap and fuse one model, with as many classes and with seven."""
    try:
        places = find_classifiers(model)
    except ModelError as error:
        return Row(name, f"refused: {error}")
    count = places[0].num_classes
    before = (dict(model.named_modules()), list(model.state_dict()), getattr(model, "num_classes", None))
    rows = [
        ClassEmbeddings(torch.randn(classes, 16), tuple(f"class {row}" for row in range(classes)))
        for classes in (count, 7)
    ]
    try:
        wrap_model(model, embeddings=rows[0])
        fuse(model)
        heads = find_heads(model)
        cosine = all(isinstance(head, FusedCosineHead) for head in heads.values())
        unwrap_model(model)
        after = (dict(model.named_modules()), list(model.state_dict()), getattr(model, "num_classes", None))
        # wrap_model compares the output's shape with what seven classes must give, and refuses where they differ.
        wrap_model(model, embeddings=rows[1], normalize=False, new_classes=True)
    except ModelError as error:
        return Row(name, f"refused: {error}")
    seen = trace(model)
    shape = "unknown" if seen is None else "ok" if any(7 in shape for shape in seen.shapes) else "WRONG"
    fuse(model)
    linear = dict(model.named_modules()).keys() == before[0].keys() and list(model.state_dict()) == before[1]
    linear = linear and all(model.get_submodule(place.name).weight.shape[0] == 7 for place in places)
    return Row(
        model=name,
        outcome="wrapped",
        heads=", ".join(heads),
        features=", ".join(dict.fromkeys(str(place.in_features) for place in places)),
        classes=count,
        shape=shape,
        unwrapped="ok" if after == before else "WRONG",
        fused="ok" if cosine and linear else "WRONG",
    )


def torchvision_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield every listed classification model."""
    models = importlib.import_module("torchvision.models")
    for name in models.list_models(module=models):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield name, lambda name=name, options=options: models.get_model(name, **options)


def timm_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield the first model of every module of timm, and the variants with several heads."""
    timm = importlib.import_module("timm")
    names = [timm.list_models(module=module)[:1] for module in timm.list_modules()]
    special = ["deit_tiny_distilled_patch16_224", "rdnet_large", "levit_128", "inception_v3", "maxvit_tiny_tf_224"]
    for name in dict.fromkeys([*(first for found in names for first in found), *special]):
        yield name, lambda name=name: timm.create_model(name, pretrained=False)


def transformers_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield every image-classification architecture with its default configuration."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for config, found in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.items():
        for kind in found if isinstance(found, tuple) else (found,):
            yield kind.__name__, lambda kind=kind, config=config: kind(config(num_labels=1000))


LIBRARIES = {"torchvision": torchvision_models, "timm": timm_models, "transformers": transformers_models}


def sweep(library: str) -> Iterator[Row]:
    """Yield a row per model of a library."""
    for name, build in LIBRARIES[library]():
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with OnMeta(), torch.device("meta") if library == "transformers" else torch.device("cpu"):
                    model = build()
            except Exception as error:
                yield Row(name, f"not built: {type(error).__name__}: {error}".split("\n")[0][:120])
                continue
            try:
                yield check(name, model)
            except Exception as error:
                yield Row(name, f"FAILED: {type(error).__name__}: {error}".split("\n")[0][:160])


def main(libraries: list[str]) -> int:
    """Print the table, a Markdown one, and a line of totals per library; 1 where anything is wrong."""
    wrong = 0
    for library in libraries or list(LIBRARIES):
        print(f"\n{library}\n\n| {' | '.join(field.name for field in fields(Row))} |", flush=True)
        print("|" + "---|" * len(fields(Row)))
        rows = []
        for row in sweep(library):
            rows.append(row)
            print(f"| {' | '.join(str(getattr(row, field.name)) for field in fields(Row))} |", flush=True)
        wrapped = [row for row in rows if row.outcome == "wrapped"]
        bad = [
            row for row in rows if row.outcome.startswith("FAILED") or "WRONG" in (row.shape, row.unwrapped, row.fused)
        ]
        wrong += len(bad)
        print(
            f"\n{library}: {len(rows)} models, {len(wrapped)} wrapped, {sum(', ' in row.heads for row in wrapped)} of "
            f"them with several heads, {sum(row.shape == 'ok' for row in wrapped)} output shapes checked, "
            f"{sum(row.outcome.startswith('refused') for row in rows)} refused, "
            f"{sum(row.outcome.startswith('not built') for row in rows)} not built, {len(bad)} wrong.",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

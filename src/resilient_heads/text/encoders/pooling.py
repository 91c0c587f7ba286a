"""From sentences to one vector a class."""

import torch

from resilient_heads.errors import EmbeddingError
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.embeddings import ClassEmbeddings, Provenance
from resilient_heads.text.encoders.protocol import TextEncoder

POOLING = "mean"
"""How the sentences of a class become one vector, as provenance records it."""


def embed_classes(descriptions: ClassDescriptions, encoder: TextEncoder, *, normalize: bool = True) -> ClassEmbeddings:
    """Embed every sentence once and average over the sentences of each class.

    Args:
        descriptions: The sentences, C classes.
        encoder: Sentences to ``(N, E)``.
        normalize: Bring each sentence's embedding to unit norm before averaging, so that a long vector has no more
            say than a short one.

    Returns:
        Class embeddings ``(C, E)`` float32 that record the encoder and the descriptions' digest.

    Raises:
        EmbeddingError: The encoder gives something else than one finite vector a sentence.

    Source: Pratt et al., *What does a platypus look like?*, ICCV 2023, for averaging descriptions.
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
    order = {sentence: row for row, sentence in enumerate(dict.fromkeys(_flat(descriptions)))}
    vectors = encoder.encode(list(order))
    if not isinstance(vectors, torch.Tensor):
        raise EmbeddingError(f"{encoder.id} gave a {type(vectors).__name__}; expected a tensor of one row a sentence.")
    if vectors.shape != (len(order), encoder.embed_dim):
        raise EmbeddingError(
            f"{encoder.id} gave {tuple(vectors.shape)} for {len(order)} sentences; "
            f"expected {(len(order), encoder.embed_dim)}."
        )
    vectors = vectors.double()
    if normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    means = torch.stack([vectors[[order[s] for s in own]].mean(dim=0) for own in descriptions.sentences])
    provenance = Provenance(
        encoder=encoder.id,
        encoder_revision=encoder.revision,
        descriptions_sha256=descriptions.sha256,
        pooling=POOLING,
        normalized=normalize,
        weights_sha256=str(getattr(encoder, "weights_sha256", "")),
    )
    return ClassEmbeddings(means.float(), descriptions.class_names, provenance)


def _flat(descriptions: ClassDescriptions) -> list[str]:
    return [sentence for own in descriptions.sentences for sentence in own]

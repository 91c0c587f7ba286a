"""Every error and warning that the library raises on purpose. Each class has one meaning.

.. code-block:: text

    Exception
    └── ResilientHeadsError                   every error below
        ├── ArgumentError (ValueError)        a wrong argument: seed=-1, batch_size=0, engine="fast"
        ├── DescriptionError (ValueError)     class names or class descriptions
        ├── EmbeddingError (ValueError)       class embeddings, or the text encoder that makes them
        ├── HubError (OSError)                the Hugging Face Hub
        ├── LanguageModelError (RuntimeError) the language model that writes descriptions
        ├── ModelError (ValueError)           the model, its classifier or its checkpoint
        │   └── ForwardError                  the model's own code raised an error in a forward pass
        ├── DataError (ValueError)            images or labels
        ├── FaultError (ValueError)           a fault that does not exist in the model: unknown layer, bit 99
        ├── InjectionError (RuntimeError)     a fault that did not take effect; the run cannot be trusted
        ├── ResultError (ValueError)          the files of a campaign, and comparisons of results
        │   └── DamagedFileError              a damaged file of a campaign, which the next run repairs
        ├── StoreError (OSError)              a campaign's folder that is read-only, full or in use
        └── MissingExtraError (ImportError)   an optional package that is not installed

Each class is also the builtin exception that it names, so ``except ValueError`` catches a wrong argument.

>>> import resilient_heads as rh
>>> try:
...     rh.statistics.sample_size(1e9, margin=-1, rate=0.5)
... except rh.errors.ArgumentError as error:
...     print(error)
margin must be a number above 0, found -1.
"""

__all__ = [
    "ArgumentError",
    "DamagedFileError",
    "DamagedFileWarning",
    "DataError",
    "DescriptionError",
    "DuplicateClassWarning",
    "EmbeddingError",
    "FaultError",
    "ForwardError",
    "HubError",
    "InjectionError",
    "LanguageModelError",
    "LongTextWarning",
    "MissingExtraError",
    "ModelError",
    "ResilientHeadsError",
    "ResultError",
    "StoreError",
]


class ResilientHeadsError(Exception):
    """Base class of all errors that this library raises on purpose."""


class ArgumentError(ResilientHeadsError, ValueError):
    """An argument has a wrong type or value; the model and the data do not matter.

    Raised by ``run_campaign(..., seed=-1)``, ``StoppingRule(half_width=0)``, ``Shard(rank=4, world_size=4)``.
    """


class DescriptionError(ResilientHeadsError, ValueError):
    """Class names or class descriptions cannot be used, or do not match each other.

    Raised by ``ClassDescriptions.load("broken.json")``, and by ``match`` for a class without a description.
    """


class EmbeddingError(ResilientHeadsError, ValueError):
    """Class embeddings cannot be used: wrong shape, NaN or Inf, a damaged file, an encoder that cannot make them.

    Raised by ``ClassEmbeddings.load("truncated.safetensors")`` and ``load_embeddings("no-such-name")``.
    """


class HubError(ResilientHeadsError, OSError):
    """The Hugging Face Hub does not answer, refuses access, or sends a file that differs from the pinned one.

    Raised by ``TextGuidedHead.from_pretrained("owner/missing")`` and ``load_embeddings`` for encoders on the Hub.

    Attributes:
        temporary: Whether a later attempt may succeed: the Hub did not answer, or reported a failure of its own.
    """

    temporary: bool = False


class LanguageModelError(ResilientHeadsError, RuntimeError):
    """A language model does not answer, or its answer holds no description.

    Raised by ``generate_descriptions``.
    """


class ModelError(ResilientHeadsError, ValueError):
    """The model's classifier cannot be found, replaced, fused or restored, or a checkpoint does not fit the model.

    Raised by ``wrap_model(model)`` for a model with two candidate classifiers, and by ``load_checkpoint``.
    """


class ForwardError(ModelError):
    """The model's own code raised an error in a forward pass; that error is the ``__cause__``.

    Raised by ``find_sites`` and ``run_campaign`` for images of a size that the model refuses.
    """


class DataError(ResilientHeadsError, ValueError):
    """Images or labels cannot be used by a campaign: none, differing shapes, labels that are no classes.

    Raised by ``run_campaign(model, [])``.
    """


class FaultError(ResilientHeadsError, ValueError):
    """A fault does not exist in the model: no such layer, neuron or bit, or no such number format.

    Raised by ``inject(model, BitFlip(layer="missing", neuron=(0,), bit=3))``.
    """


class InjectionError(ResilientHeadsError, RuntimeError):
    """A fault did not take effect as requested, or a fault-free value is not reproducible: no trial can be trusted.

    Raised by ``inject`` when the layer did not run inside the block or a weight with a fault was overwritten, by
    ``run_campaign`` on a compiled layer, and by both while another thread uses the model.
    """


class ResultError(ResilientHeadsError, ValueError):
    """A campaign's files cannot be read, or two results cannot be compared.

    Raised by ``CampaignResult.load("no-result.parquet")`` and ``compare`` of results on different images.
    """


class DamagedFileError(ResultError):
    """A file in a campaign's folder is truncated or damaged; running the campaign again writes it again.

    Raised by ``CampaignResult.load(folder)`` and ``merge_campaign(folder)``.
    """


class StoreError(ResilientHeadsError, OSError):
    """A campaign's folder cannot be written (no permission, full disk), or another process runs the campaign there.

    Raised by ``run_campaign(..., output=folder)``.
    """


class MissingExtraError(ResilientHeadsError, ImportError):
    """An optional package is needed and not installed; the message holds the command that installs it.

    Raised by ``wrap_model`` with an encoder of transformers, by ``report.plot_layers``, by the demo.
    """


class DuplicateClassWarning(UserWarning):
    """Two classes share a name, so their embeddings and their logits are equal."""


class DamagedFileWarning(UserWarning):
    """A file in a campaign's folder is lost or damaged; its content was read from other files, or is made again."""


class LongTextWarning(UserWarning):
    """A text is longer than the encoder's context; the encoder ignores the rest."""

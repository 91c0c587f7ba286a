"""Every error that the library raises on purpose.

.. code-block:: text

    Exception
    └── ResilientHeadsError
        ├── DescriptionError (ValueError)     class names or descriptions that do not fit together
        ├── EmbeddingError (ValueError)       class embeddings that cannot be used
        ├── HubError (OSError)                a file that the Hugging Face Hub does not give, or gives damaged
        ├── LanguageModelError (RuntimeError) a language model that does not answer, or answers rubbish
        ├── ModelError (ValueError)           a model whose classifier cannot be found, replaced or restored
        ├── FaultError (ValueError)           a fault that cannot be placed: unknown layer, bit out of range
        ├── DataError (ValueError)            images or labels that a campaign cannot use
        ├── ResultError (ValueError)          results that cannot be read, or cannot be compared
        │   └── DamagedChunkError             a file of trials that is truncated; running it again mends it
        ├── StoreError (OSError)              a campaign's folder that cannot be written, or is in use
        ├── InjectionError (RuntimeError)     a fault that did not take effect, or a run that cannot be trusted
        └── MissingExtraError (ImportError)   an optional package is not installed

Each is also the builtin exception that a caller would expect, so ``except ValueError`` works too.
"""

__all__ = [
    "DamagedChunkError",
    "DamagedChunkWarning",
    "DataError",
    "DescriptionError",
    "DuplicateClassWarning",
    "EmbeddingError",
    "FaultError",
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
    """Base of all errors raised by this library."""


class DescriptionError(ResilientHeadsError, ValueError):
    """Class names or class descriptions are unusable or do not match each other."""


class EmbeddingError(ResilientHeadsError, ValueError):
    """Class embeddings are unusable: wrong shape, not finite, damaged or foreign file."""


class HubError(ResilientHeadsError, OSError):
    """The Hugging Face Hub cannot be reached, refuses, or gives something else than what was pinned.

    Attributes:
        temporary: Whether another attempt may succeed: nobody answered, or the Hub said that it is out of order.
    """

    temporary: bool = False


class LanguageModelError(ResilientHeadsError, RuntimeError):
    """A language model does not answer, or answers something that is no description."""


class ModelError(ResilientHeadsError, ValueError):
    """The model's classifier cannot be found, replaced, fused or restored."""


class FaultError(ResilientHeadsError, ValueError):
    """A fault cannot be placed where it was asked for."""


class DataError(ResilientHeadsError, ValueError):
    """Images or labels cannot be used for a campaign."""


class ResultError(ResilientHeadsError, ValueError):
    """Campaign results cannot be read, or two of them cannot be compared."""


class DamagedChunkError(ResultError):
    """A file of trials in a campaign's folder is truncated or damaged; the campaign's command mends it."""


class StoreError(ResilientHeadsError, OSError):
    """A campaign's folder cannot be written (the disk is full, no permission), or another process is at work in it."""


class InjectionError(ResilientHeadsError, RuntimeError):
    """A fault did not take effect as asked, so its trial would have measured nothing."""


class MissingExtraError(ResilientHeadsError, ImportError):
    """An optional package is needed and not installed; the message holds the install line."""


class DuplicateClassWarning(UserWarning):
    """Two classes share a name, so their text embeddings and their logits tie."""


class DamagedChunkWarning(UserWarning):
    """A file of trials in a campaign's folder is damaged, so its trials are run again."""


class LongTextWarning(UserWarning):
    """A text is longer than the encoder's context, and what does not fit is cut off."""

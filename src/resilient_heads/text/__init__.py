"""What a class means: descriptions, text encoders, class embeddings, and prebuilt ones from the Hugging Face Hub."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

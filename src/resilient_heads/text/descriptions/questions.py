"""Questions for a language model about a class, and the template for a class without descriptions."""

TEMPLATE = "a photo of a {}"
"""The plain prompt of Radford et al., *Learning Transferable Visual Models from Natural Language Supervision*, 2021."""

QUESTIONS = (
    "Describe in one sentence what a {} looks like.",
    "In one sentence, which colours, textures and materials does one see on a {}?",
    "In one sentence, which parts and shape tell a {} from similar things in a photo?",
    "In one sentence, where is a {} usually photographed, and what is around it?",
    "Write one sentence that captions a typical photo of a {}.",
)
"""Questions with one ``{}`` for the class name; each answer is a description."""

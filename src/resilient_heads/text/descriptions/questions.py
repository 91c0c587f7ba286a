"""What a language model is asked about each class, and the one sentence that asks nothing."""

TEMPLATE = "a photo of a {}"
"""The plain prompt of Radford et al., *Learning Transferable Visual Models from Natural Language Supervision*, 2021."""

QUESTIONS = (
    "Describe in one sentence what a {} looks like.",
    "In one sentence, which colours, textures and materials does one see on a {}?",
    "In one sentence, which parts and shape tell a {} from similar things in a photo?",
    "In one sentence, where is a {} usually photographed, and what is around it?",
    "Write one sentence that captions a typical photo of a {}.",
)
"""D questions with one ``{}`` for the class name; the answers are the descriptions."""

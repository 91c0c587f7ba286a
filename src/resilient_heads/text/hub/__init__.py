"""Files from the Hugging Face Hub, pinned and verified."""

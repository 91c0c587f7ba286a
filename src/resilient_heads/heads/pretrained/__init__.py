"""Text-guided heads on disk and on the Hugging Face Hub."""

"""Embeddings on the Hugging Face Hub: publish them, verify them, pin them; where to find the Hub."""

from resilient_heads.text.hub.settings import HubSettings
from resilient_heads.text.prebuilt.manifest import HubEntry, Manifest
from resilient_heads.text.prebuilt.publish import publish, verify_folder, write_folder

__all__ = ["HubEntry", "HubSettings", "Manifest", "publish", "verify_folder", "write_folder"]

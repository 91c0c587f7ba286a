"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of a head."""

import os
from pathlib import Path
from typing import Self

import torch
from torch import nn

from resilient_heads.heads.pretrained.card import MeasuredCampaign, head_card
from resilient_heads.heads.pretrained.files import check_tensors, read_head, upload_head, write_head
from resilient_heads.text.hub.settings import HubSettings


class PretrainedHead(nn.Module):
    """A head that is saved to and loaded from files: strict, safetensors, each file verified by its sha256."""

    class_names: tuple[str, ...] | None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        offline: bool = False,
        hub: HubSettings | None = None,
    ) -> Self:
        """Load a head that :meth:`save_pretrained` or :meth:`push_to_hub` wrote.

        Put it into a model with ``wrap_model(model, head=head)``.

        Args:
            source: Folder, or repository ``"owner/name"`` on the Hub.
            revision: Commit on the Hub; None takes the newest commit and logs it.
            offline: Never use the network.
            hub: How to reach the Hub.

        Raises:
            ModelError: A file is damaged, or a tensor is missing, unexpected, or has another shape or dtype.
            HubError: The files could not be downloaded.
        """
        config, text, state = read_head(source, revision=revision, offline=offline, hub=hub)
        head = cls(
            config.in_features,
            (config.num_classes, config.embed_dim) if text is None else text,
            normalize=config.normalize,
            bias=config.bias,
            conv=config.conv,
            protection=config.protection,
            device="meta",  # a damaged config.json may name huge sizes
            dtype=config.dtype,
        )
        head.class_names = config.class_names
        check_tensors(state, head.state_dict())
        head.to_empty(device=torch.get_default_device())
        head.load_state_dict(state, strict=True)
        return head

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        campaign: MeasuredCampaign | None = None,
        licence: str = "apache-2.0",
    ) -> Path:
        """Write the head as config.json, model.safetensors and a model card; save it before ``fuse``.

        Args:
            folder: Where to write. Files of an earlier head are replaced; files of anything else never are.
            campaign: What :func:`run_campaign` measured on a model with this head; its figures go into the card.
            licence: Licence identifier for the card.

        Returns:
            The folder.

        Raises:
            ModelError: The head's ``in_features`` are still open; ``campaign`` is not a campaign's result; or the
                folder holds files of something else. Nothing has been written then.

        >>> import resilient_heads as rh, tempfile
        >>> head = rh.TextGuidedHead(8, rh.load_embeddings("cifar10"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = head.save_pretrained(folder)
        ...     rh.TextGuidedHead.from_pretrained(folder)  # doctest: +ELLIPSIS
        TextGuidedHead(
          in_features=8, embed_dim=384, num_classes=10, normalize=True, text='all-MiniLM-L6-v2'
          ...
        """
        return write_head(self, folder, head_card(self, campaign=campaign, licence=licence))

    def push_to_hub(
        self,
        repo: str,
        *,
        campaign: MeasuredCampaign | None = None,
        licence: str = "apache-2.0",
        private: bool = False,
        hub: HubSettings | None = None,
    ) -> str:
        """Upload the head as a model repository on the Hugging Face Hub.

        Args:
            repo: ``"owner/name"``; created if it does not exist.
            campaign: What :func:`run_campaign` measured on a model with this head; its figures go into the card.
            licence: Licence identifier for the card.
            private: Make a new repository private.
            hub: How to reach the Hub.

        Returns:
            The commit, which pins the head: ``TextGuidedHead.from_pretrained(repo, revision=commit)``.

        Raises:
            ModelError: As :meth:`save_pretrained`.
            HubError: The Hub refuses, or could not be reached.
        """
        card = head_card(self, campaign=campaign, licence=licence, repo=repo)
        return upload_head(self, repo, card=card, private=private, hub=hub)

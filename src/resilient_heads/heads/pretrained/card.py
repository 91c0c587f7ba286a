"""The model card of a saved head."""

from typing import Any, Protocol

from resilient_heads.errors import ModelError, ResilientHeadsError


class MeasuredCampaign(Protocol):
    """A campaign's result, as far as a model card needs it."""

    def summary(self) -> Any:
        """Return figures with ``protocol``, ``trials``, ``accuracy`` and ``scopes``."""
        ...


def head_card(head: Any, *, campaign: MeasuredCampaign | None, licence: str, repo: str | None = None) -> bytes:
    """Return the model card; ``repo`` is where the head is published, None while its files only lie in a folder.

    Raises:
        ModelError: ``campaign`` is not a campaign's result.
    """
    pin = (
        "These files have not been published; the path is that of the folder that holds them."
        if repo is None
        else "A card cannot name the commit that it is part of. Take the commit from the repository's history and pass "
        "it as `revision=`; the same bits then load at any time."
    )
    made = head.provenance
    text = "random rows" if made is None else f"`{made.encoder}` ({made.encoder_revision or 'revision not recorded'})"
    return f"""---
license: {licence}
library_name: resilient-heads
tags:
- text-guided-classifier
- resilient-heads
---

# Text-guided head

A {"cosine" if head.normalize else "linear"} classifier head from {head.in_features} features to {head.num_classes} \
classes through {head.embed_dim} dimensions; its rows started from {text}.

```python
import resilient_heads as rh

head = rh.TextGuidedHead.from_pretrained("{repo or "path/to/this/folder"}")
model = rh.wrap_model(model, head=head)
```

{pin}

## Measured resilience

{"Not measured: no campaign result was passed." if campaign is None else _figures(campaign)}
""".encode()


def _figures(campaign: MeasuredCampaign) -> str:
    """Return a table of a campaign's figures."""
    if isinstance(campaign, type) or not callable(getattr(campaign, "summary", None)):
        raise ModelError(f"campaign= must be the result that run_campaign returned, found {campaign!r:.60}.")
    try:
        return _table(campaign.summary())
    except ResilientHeadsError:
        raise
    except Exception as error:  # an object of another library may have a summary() that fails in its own way
        raise ModelError(
            f"campaign= gave no figures for the card: {type(campaign).__name__}.summary() failed with {error!r:.200}. "
            "Pass what run_campaign returned, or leave campaign= out; nothing has been written."
        ) from error


def _table(summary: Any) -> str:
    """Return the figures of a campaign's summary as Markdown."""
    lines = [
        f"{summary.trials} trials, protocol `{summary.protocol.name}`, {summary.images} images, fault-free accuracy "
        f"{summary.accuracy.value:.2%}.",
        "",
        f"| one flip in | silent data corruption ({summary.level:.0%} interval) | not finite or detected |",
        "|---|---|---|",
    ]
    for name, scope in summary.scopes.items():
        sdc, due = scope.bit_weighted.sdc, scope.bit_weighted.due
        lines.append(f"| {name} | {sdc.value:.4%} ({sdc.low:.4%} to {sdc.high:.4%}) | {due.value:.4%} |")
    return "\n".join(lines)

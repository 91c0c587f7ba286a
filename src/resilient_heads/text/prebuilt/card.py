"""The card of published class embeddings: what they are, how they were made, how to load and check them."""

import json
from collections.abc import Mapping
from typing import Any

CARD = "README.md"


def dataset_card(listing: Mapping[str, Any], *, repo: str | None = None) -> str:
    """Return the card.

    Args:
        listing: Content of the manifest that lies beside it: ``licence`` and ``files``.
        repo: Repository where it is published; None while the files only lie in a folder.
    """
    files: Mapping[str, Any] = listing["files"]
    rows = [
        f"| `{file}` | {own['classes']} | {own['dimensions']} | {own['dtype']} | {own['provenance']['encoder']} "
        f"| `{own['sha256']}` |"
        for file, own in files.items()
    ]
    made_of = [f"- `{file}`: `{json.dumps(own['provenance'], sort_keys=True)}`" for file, own in files.items()]
    return f"""---
license: {listing["licence"]}
tags:
- class-embeddings
- text-guided-classifier
- resilient-heads
---

# Class embeddings

One vector for each class of an image dataset: the mean of a text encoder's embeddings of sentences that say how the
class looks. They are the rows that a text-guided classifier head starts from.

| file | classes | dimensions | stored as | encoder | sha256 |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## How they were made

{chr(10).join(made_of)}

`descriptions_sha256` is `ClassDescriptions.sha256` of the sentences; the same sentences and encoder give these bytes
on one kind of processor. What is empty was not recorded.

## How to load them

{_loading(files, repo)}
`manifest.json` holds the same digests.
"""


def _loading(files: Mapping[str, Any], repo: str | None) -> str:
    """Return the code that loads the first file, and what pins it."""
    first, own = next(iter(files.items()))
    if repo is None:
        return f"""```python
from resilient_heads import ClassEmbeddings

embeddings = ClassEmbeddings.load("{first}")
```

These files have not been published, so no repository and no commit can be named here. Check a file against its sha256
above: `resilient-heads embeddings verify {first} --sha256 {own["sha256"]}`."""
    return f"""```python
import hashlib
from pathlib import Path

from huggingface_hub import hf_hub_download
from resilient_heads import ClassEmbeddings

path = hf_hub_download("{repo}", "{first}", repo_type="dataset")
# The client compares sizes only; this finds a file that was damaged or replaced.
assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == "{own["sha256"]}"
embeddings = ClassEmbeddings.load(path)
```

A card cannot name the commit that it is part of. The repository's history lists it, and `revision=` pins it; the sha256
pins the content whatever the commit."""

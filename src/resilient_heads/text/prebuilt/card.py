"""The dataset card of published class embeddings."""

import json
from collections.abc import Mapping
from typing import Any

CARD = "README.md"


def dataset_card(manifest: Mapping[str, Any], *, repo: str | None = None) -> str:
    """Return the card.

    Args:
        manifest: Content of the manifest beside the card.
        repo: Repository where the embeddings are published; None while they are only in a folder.
    """
    files: Mapping[str, Any] = manifest["files"]
    rows = [
        f"| `{file}` | {record['classes']} | {record['dimensions']} | {record['dtype']} "
        f"| {record['provenance']['encoder']} | `{record['sha256']}` |"
        for file, record in files.items()
    ]
    provenances = [f"- `{file}`: `{json.dumps(entry['provenance'], sort_keys=True)}`" for file, entry in files.items()]
    return f"""---
license: {manifest["licence"]}
tags:
- class-embeddings
- text-guided-classifier
- resilient-heads
---

# Class embeddings

One vector for each class of an image dataset: the mean of a text encoder's embeddings of sentences that describe the
class. A text-guided classifier head starts from these vectors.

| file | classes | dimensions | stored as | encoder | sha256 |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## How they were made

{chr(10).join(provenances)}

`descriptions_sha256` is `ClassDescriptions.sha256` of the sentences. On one kind of processor, the same sentences and
encoder give these bytes. Empty values were not recorded.

## How to load them

{_loading(files, repo)}
`manifest.json` has the same digests.
"""


def _loading(files: Mapping[str, Any], repo: str | None) -> str:
    """Return code that loads the first file, and how to check it."""
    file, record = next(iter(files.items()))
    if repo is None:
        return f"""```python
from resilient_heads import ClassEmbeddings

embeddings = ClassEmbeddings.load("{file}")
```

These files have not been published, so the card names no repository. Check a file against its sha256 above:
`resilient-heads embeddings verify {file} --sha256 {record["sha256"]}`."""
    return f"""```python
import hashlib
from pathlib import Path

from huggingface_hub import hf_hub_download
from resilient_heads import ClassEmbeddings

path = hf_hub_download("{repo}", "{file}", repo_type="dataset")
# The Hub client compares sizes only; this check finds a file that was damaged or replaced.
assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == "{record["sha256"]}"
embeddings = ClassEmbeddings.load(path)
```

A card cannot name its own commit. The repository's history lists the commits, and `revision=` pins one; the sha256 pins
the content at every commit."""

"""Protect a classifier's last layer, inject every possible bit flip, and count the SDCs and DUEs that remain.

``python examples/protected_head.py`` needs scikit-learn (extra ``demo``) and takes about a minute.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import resilient_heads as rh


def trained_head() -> tuple[rh.TextGuidedHead, torch.Tensor, torch.Tensor]:
    """Return a text-guided head on the pixels of handwritten digits, with pixels and labels to test it on."""
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    head = rh.TextGuidedHead(64, rh.load_embeddings("digits", offline=True))
    optimizer = torch.optim.AdamW(head.param_groups(weight_decay=0.05), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x[:1500]), y[:1500]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.eval(), x[1500:], y[1500:]


def main(images: int = 10) -> None:
    """Count the faults of the head, unprotected and protected."""
    torch.manual_seed(0)
    head, x, y = trained_head()
    right = (head(x).argmax(dim=1) == y).nonzero().flatten()[:images]
    x, y = x[right], y[right]
    golden = head(x)
    for protection in (None, rh.Protection(bounds=True), rh.Protection(checksum=True), rh.Protection(median=True)):
        head.protect(protection)
        assert torch.equal(head(x), golden)
        result = rh.run_exhaustive(head, (x, y), progress=False)
        last = result["head"]
        name = "unprotected" if protection is None else str(protection)
        before = [result.count(kind) - last.count(kind) for kind in (rh.Outcome.SDC, rh.Outcome.DUE)]
        print(
            f"{name:<12} {result.faults:>9,} faults in {len(result.tensors):>2} tensors; "
            f"before the logits {before[0]:>6,} SDC, {before[1]:>4,} DUE; in them {last.count(rh.Outcome.SDC):,} SDC, "
            f"{last.count(rh.Outcome.DUE):,} DUE"
        )


if __name__ == "__main__":
    main()

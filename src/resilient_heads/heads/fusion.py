"""Combine the two matrix products of a head into one: the algebra of ``fuse``, on plain tensors.

With latent ``z = W x + b`` and projection ``P``:

- linear head: ``P z = (P W) x + P b``, a plain linear layer;
- cosine head: ``s P z / ||z||``. The scores ``P z`` are linear in ``x``. The norm equals that of another linear map,
  which is not larger than the latent layer: ``||z|| = ||R [x; 1]||`` for any ``R`` with ``R^T R = [W b]^T [W b]``. One
  matrix product gives the C scores and the vector ``R [x; 1]``, whose norm divides them.

Shapes: ``latent`` is ``(E, F)``, ``bias`` ``(E,)`` or None, ``projection`` ``(C, E)``.
"""

import torch
from torch import Tensor


def fuse_linear(latent: Tensor, bias: Tensor | None, projection: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the layer that computes ``projection @ (latent @ x + bias)``.

    Returns:
        ``(C, F)`` and ``(C,)`` or None, in the dtype of ``latent``; they are computed in float64.
    """
    wide = _wide(projection)
    weight = (wide @ _wide(latent)).to(latent)
    return weight, None if bias is None else (wide @ _wide(bias)).to(latent)


def norm_factor(latent: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the smallest linear map whose output has the same norm as the latent vector, for every input.

    Returns:
        ``(K, F)`` and ``(K,)`` or None with ``K = min(E, F + 1)`` (``min(E, F)`` without bias): the latent layer
        itself, or the triangular factor of its QR decomposition if that has fewer rows.
    """
    stacked = _wide(latent if bias is None else torch.cat([latent, bias[:, None]], dim=1))
    if stacked.shape[0] <= stacked.shape[1]:
        return latent.clone(), None if bias is None else bias.clone()
    factor = torch.linalg.qr(stacked, mode="r").R.to(latent)
    return (factor, None) if bias is None else (factor[:, :-1].contiguous(), factor[:, -1].contiguous())


def fuse_cosine(latent: Tensor, bias: Tensor | None, projection: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the layer that gives the C scores and then the vector of size K with the norm.

    Returns:
        ``(C + K, F)`` and ``(C + K,)`` or None; logits are ``scale * y[:C] / ||y[C:]||``.
    """
    weight, offset = fuse_linear(latent, bias, projection)
    factor, shift = norm_factor(latent, bias)
    if offset is None or shift is None:
        return torch.cat([weight, factor]), None
    return torch.cat([weight, factor]), torch.cat([offset, shift])


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its device lacks float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()

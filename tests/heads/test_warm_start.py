"""A warm-started head decides as the trained classifier did."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.heads import random_embeddings, snapshot
from helpers.shared_data import FOLDER, cifar10, pretrained_resnet20
from resilient_heads.errors import ArgumentError, ModelError
from resilient_heads.heads.swap.warm_start import warm_start_
from resilient_heads.heads.text_guided import TextGuidedHead


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("dimensions", [10, 16])
def test_linear_head_gives_the_same_scores_and_cosine_head_the_same_decisions(
    bias: bool, conv: bool, dimensions: int
) -> None:
    text, x = random_embeddings(10, dimensions), torch.randn(200, 8)
    plain = nn.Conv2d(8, 10, 1, bias=bias) if conv else nn.Linear(8, 10, bias=bias)
    given = x[:, :, None, None] if conv else x
    scores = plain(given).flatten(1)
    for normalize in (False, True):
        head = TextGuidedHead(8, text, normalize=normalize, bias=bias, conv=conv)
        projection = head.projection.weight.clone()
        kept = warm_start_(head, plain, x)
        logits = head(given).flatten(1)
        assert (kept.exact, kept.rank, kept.images) == (True, 10, 200)
        assert kept.lost < 1e-8
        assert torch.equal(head.projection.weight, projection)
        if normalize:
            # One positive factor an image: the ratio of logits to scores is the same for all classes.
            ratio = logits / scores
            assert (ratio > 0).all()
            assert (ratio / ratio[:, :1] - 1).abs().max() < 2e-2
        else:
            assert (logits - scores).abs().max() < 1e-4
        assert kept.agreement is not None
        assert kept.agreement >= 0.995  # ties within rounding


def test_a_cosine_heads_scale_comes_closest_to_the_scores() -> None:
    plain, x = nn.Linear(8, 10), torch.randn(200, 8)
    head = TextGuidedHead(8, random_embeddings(10, 16))
    warm_start_(head, plain, x)
    scores, best = plain(x), head.logit_scale.clone()

    @torch.no_grad()
    def error(shift: float) -> float:
        head.logit_scale.copy_(best + shift)
        logits = head(x)
        centred = (logits - logits.mean(1, keepdim=True)) - (scores - scores.mean(1, keepdim=True))
        return float(centred.square().sum())

    assert error(0.0) < min(error(-0.02), error(0.02))


def test_more_classes_than_dimensions_lose_what_lies_outside_the_span() -> None:
    plain, x = nn.Linear(64, 40), torch.randn(500, 64)
    agreements = []
    for dimensions in (5, 20, 39, 40):
        kept = warm_start_(TextGuidedHead(64, random_embeddings(40, dimensions), normalize=False), plain, x)
        assert kept.rank == dimensions
        assert kept.agreement is not None
        agreements.append(kept.agreement)
    assert agreements == sorted(agreements)
    assert agreements[0] < 0.6
    assert agreements[2] >= 0.995  # one less than the classes suffices: scores may move together
    reference = warm_start_(TextGuidedHead(64, text := random_embeddings(40, 5), normalize=False), plain)
    weight = torch.cat([plain.weight, plain.bias[:, None]], 1).detach().double()
    weight = weight - weight.mean(0)
    basis = text.vectors.double() - text.vectors.double().mean(0)
    solved = torch.linalg.lstsq(basis, weight).solution
    assert reference.lost == pytest.approx(float(((weight - basis @ solved) ** 2).sum() / (weight**2).sum()), abs=1e-6)


def test_a_head_and_a_classifier_that_do_not_fit_are_refused() -> None:
    plain = nn.Linear(8, 10)
    with pytest.raises(ModelError, match="needs the same numbers"):
        warm_start_(TextGuidedHead(7, (10, 12)), plain)
    with pytest.raises(ModelError, match="build the head with bias=True"):
        warm_start_(TextGuidedHead(8, (10, 12), bias=False), plain)
    with pytest.raises(ModelError, match="meta device"):
        warm_start_(TextGuidedHead(8, (10, 12)), nn.Linear(8, 10, device="meta"))
    head = TextGuidedHead(8, (10, 12))
    before = snapshot(head)
    with pytest.raises(ModelError, match=r"features must be \(N, 8\)"):
        warm_start_(head, plain, torch.zeros(3, 7))
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    nn.init.constant_(plain.weight, float("nan"))
    with pytest.raises(ModelError, match="contain NaN or Inf"):
        warm_start_(TextGuidedHead(8, (10, 12)), plain)
    with pytest.raises(ArgumentError, match="cannot go with new_classes=True"):
        rh.wrap_model(
            nn.Sequential(plain), embeddings=random_embeddings(7, 12), init="from_classifier", new_classes=True
        )


def trained_on_digits() -> tuple[nn.Sequential, Tensor, Tensor]:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target).long()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y


@pytest.mark.parametrize("normalize", [False, True])
def test_a_trained_model_keeps_its_decisions(normalize: bool, caplog: pytest.LogCaptureFixture) -> None:
    model, x, y = trained_on_digits()
    before = model(x).argmax(1)
    assert (before == y).double().mean() > 0.95
    with caplog.at_level(logging.INFO):
        rh.wrap_model(model, embeddings="digits", normalize=normalize, init="from_classifier", example_input=x)
    assert torch.equal(model(x).argmax(1), before)
    assert "Warm start of '2': exact; decisions kept: 100.00% of 1797." in caplog.text
    assert torch.equal(rh.fuse(model)(x).argmax(1), before)


@pytest.mark.shared_data
@pytest.mark.parametrize("normalize", [False, True])
def test_the_pretrained_resnet20_keeps_its_decisions(normalize: bool) -> None:
    model, (images, labels) = pretrained_resnet20(), cifar10(200)
    with torch.inference_mode():
        before = model(images).argmax(1)
        rh.wrap_model(model, embeddings="cifar10", normalize=normalize, init="from_classifier")
        after = model(images).argmax(1)
    assert (before == labels).double().mean() > 0.7
    assert torch.equal(after, before)


def gap512(dimensions: int) -> tuple[float, float, float]:
    """Return agreement, accuracy before and accuracy after for 200 trained classes and as many dimensions."""
    data = np.load(FOLDER / "tiny_imagenet" / "squeezenet_gap512.npz")
    keys = {key: data[key] for key in data.files}
    x, y = (torch.tensor(keys[k]) for k in ("train_x", "train_y"))
    held, truth = (torch.tensor(keys[k]) for k in ("val_x", "val_y"))
    mean, std = x.float().mean(0), x.float().std(0) + 1e-6
    x, held = (x.float() - mean) / std, (held.float() - mean) / std
    plain = nn.Linear(512, 200)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y.long()).backward()
        optimizer.step()
    text = torch.load(FOLDER / "clip_text" / "gpt3.pth", weights_only=True, map_location="cpu").float()
    chosen = text[torch.tensor(keys["imagenet_index"]).long()]
    left, sizes, _ = torch.linalg.svd(chosen, full_matrices=False)  # fewer dimensions: the strongest ones
    head = TextGuidedHead(512, left[:, :dimensions] * sizes[:dimensions])
    kept = warm_start_(head, plain, held)
    assert kept.agreement is not None
    same = [float((layer(held).argmax(1) == truth).double().mean()) for layer in (plain, head)]
    return kept.agreement, same[0], same[1]


@pytest.mark.shared_data
def test_real_features_show_what_too_few_dimensions_cost() -> None:
    agreement, before, after = gap512(200)
    assert agreement >= 0.99
    assert before == pytest.approx(after, abs=0.01)
    assert before > 0.3
    assert gap512(77)[0] < agreement

"""Find where a gain comes from: the text, the normalisation, or the extra layer.

Train one small network with four different heads on scikit-learn's digits, and inject faults into each head.
Run it with ``python examples/ablation.py`` (extra ``demo``; half a minute on two cores).
"""

import copy

import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.demo import digits, train


def backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        return float((model(images).argmax(dim=1) == labels).float().mean())


def main() -> None:
    train_set, test_set = digits(seed=0)
    torch.manual_seed(0)
    plain = backbone()
    text = rh.load_embeddings("digits")
    size = (text.num_classes, text.embed_dim)
    models = {
        "linear (baseline)": plain,
        "cosine, text": rh.wrap_model(copy.deepcopy(plain), embeddings=text),
        "cosine, random": rh.wrap_model(copy.deepcopy(plain), head=rh.TextGuidedHead(128, size)),
        "two linear layers, text": rh.wrap_model(copy.deepcopy(plain), embeddings=text, normalize=False),
    }
    for name, model in models.items():
        train(model, train_set, seed=0, epochs=15, device="cpu", label=name)
        print(f"\n## {name}: accuracy {accuracy(model, *test_set.tensors):.1%}\n")
        for protocol in ("goldeneye", "raw"):
            result = rh.run_campaign(
                model,
                test_set.tensors,
                protocol=protocol,
                trials_per_site=4096,
                layers=[site.name for site in rh.find_sites(model, test_set.tensors[0][:2]).last],
                calibration=train_set.tensors[0],
                batch_size=256,
            )
            print(f"{protocol}:\n\n{rh.report.layer_table(result)}")


if __name__ == "__main__":
    main()

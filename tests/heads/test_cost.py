import pytest
import torch
from torch import nn
from torchvision import models

from resilient_heads.heads.cost import count_flops, count_parameters
from resilient_heads.heads.swap.wrap import fuse, wrap_model
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.text.embeddings import ClassEmbeddings

# Table 1 of the paper, "difference in parameters" in millions, for E = 512 and 1,000 classes.
TABLE_1 = {
    "alexnet": "-1.49",
    "vgg16_bn": "-1.49",
    "vgg19_bn": "-1.49",
    "resnet18": "0.26",
    "resnet34": "0.26",
    "resnet50": "-0.49",
    "resnet101": "-0.49",
    "resnet152": "-0.49",
    "mobilenet_v2": "-0.11",
    "maxvit_t": "0.26",
    "swin_v2_t": "0.137",  # printed as 0.13
    "swin_v2_s": "0.137",
}


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1_of_the_paper(name: str) -> None:
    embeddings = ClassEmbeddings(torch.ones(1000, 512), tuple(map(str, range(1000))))
    with torch.device("meta"):
        model = models.get_model(name)
    before = count_parameters(model)
    change = (count_parameters(wrap_model(model, embeddings=embeddings)) - before) / 1e6
    printed = TABLE_1[name]
    assert f"{change:.{len(printed.partition('.')[2])}f}" == printed


@pytest.mark.parametrize("features", [3, 6, 20])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_of_each_kind_of_head(features: int, bias: bool) -> None:
    classes, embed = 10, 7
    linear = TextGuidedHead(features, (classes, embed), normalize=False, bias=bias)
    cosine = TextGuidedHead(features, (classes, embed), bias=bias)
    assert count_parameters(linear) == (features + bias) * embed + classes * embed
    assert count_parameters(cosine) == count_parameters(linear) + 1
    assert count_parameters(fuse(linear)) == (features + bias) * classes
    rows = classes + min(embed, features + bias)
    assert count_parameters(fuse(cosine)) == (features + bias) * rows + 1


@pytest.mark.parametrize(("classes", "embed"), [(40, 12), (10, 12), (12, 12)])
def test_where_fusing_makes_the_layer_larger_is_what_the_docs_say(classes: int, embed: int) -> None:
    for features in range(1, 40):
        grown = {
            normalize: count_parameters(fuse(TextGuidedHead(features, (classes, embed), normalize=normalize)))
            - count_parameters(TextGuidedHead(features, (classes, embed), normalize=normalize))
            for normalize in (False, True)
        }
        wide = features + 1
        assert (grown[False] > 0) == (embed < classes * wide / (classes + wide))
        assert (grown[True] > 0) == (features >= embed)
        assert (grown[True] < 0) == (wide < embed)
        if features >= embed:
            assert grown[True] == classes * (wide - embed)
        if classes <= embed or features < embed:
            assert grown[False] <= 0


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, nn.ReLU(), layer)) == 12


def test_flops_by_hand() -> None:
    assert count_flops(nn.Linear(5, 7), torch.randn(3, 5)) == 2 * 3 * 5 * 7
    assert count_flops(nn.Conv2d(4, 6, 3, groups=2), torch.randn(1, 4, 9, 8)) == 2 * (4 // 2 * 9) * 6 * 7 * 6
    assert count_flops(TextGuidedHead(20, (9, 12)), torch.randn(1, 20)) == 2 * (20 * 12 + 12 * 9)
    assert count_flops(fuse(TextGuidedHead(20, (9, 12), normalize=False)), torch.randn(1, 20)) == 2 * 20 * 9
    assert count_flops(nn.ReLU(), torch.randn(3, 5)) == 0


# Multiply-accumulates in thousands of millions, as torchvision's documentation lists them.
@pytest.mark.parametrize(("name", "published"), [("resnet50", 4.09), ("mobilenet_v2", 0.3), ("swin_t", 4.49)])
def test_flops_are_twice_the_published_multiply_accumulates(name: str, published: float) -> None:
    with torch.device("meta"):
        model, image = models.get_model(name).eval(), torch.empty(1, 3, 224, 224)
    assert round(count_flops(model, image) / 2e9, 2) == published


def test_counting_flops_leaves_the_model_as_it_was() -> None:
    seen = []

    class Spy(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.append((torch.is_grad_enabled(), self.training))
            return super().forward(input)

    model = nn.Sequential(Spy(5, 7), nn.BatchNorm1d(7), nn.Dropout(), Spy(7, 3))
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count_flops(model, torch.randn(1, 5)) == 2 * (5 * 7 + 7 * 3)
    assert seen == [(False, False)] * 2
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()

"""Models whose classifier or whose costs are easily mistaken."""

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.errors import EmbeddingError, ModelError
from resilient_heads.heads.cost import count_flops, count_parameters
from resilient_heads.heads.text_guided import TextGuidedHead

models = pytest.importorskip("torchvision.models")


def test_an_auxiliary_classifier_is_not_taken_for_the_main_one() -> None:
    model = models.googlenet(init_weights=False)
    model.fc = nn.Identity()
    with pytest.raises(ModelError, match=r"'aux2\.fc2' belongs to an auxiliary branch.*Name it"):
        rh.wrap_model(model)


class Dynamic(nn.Module):
    __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"


def test_a_quantised_model_is_refused() -> None:
    with pytest.raises(ModelError, match="wrap it first, then quantise"):
        rh.wrap_model(nn.Sequential(nn.Linear(6, 10), Dynamic()), embeddings="cifar10")


def test_a_model_that_is_only_prepared_for_quantising_is_wrapped() -> None:
    class Prepared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip = torch.ao.nn.quantized.FloatFunctional()
            self.fc = nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.skip.add(x, x))

    assert rh.is_wrapped(rh.wrap_model(Prepared(), embeddings="cifar10"))


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 10)

    @property
    def num_classes(self) -> int:
        return self.fc.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_a_read_only_number_of_classes_is_not_set() -> None:
    model = rh.wrap_model(Counted(), embeddings="digits")
    assert model.num_classes == 10
    assert not rh.is_wrapped(rh.unwrap_model(model))


def test_a_head_with_open_features_goes_into_a_model_on_the_meta_device() -> None:
    head = TextGuidedHead(None, (10, 4))
    model = rh.wrap_model(nn.Sequential(nn.Linear(8, 10)).to("meta"), head=head)
    assert model[0].in_features == 8
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_head_itself_cannot_be_unwrapped() -> None:
    model = rh.wrap_model(Counted(), embeddings="digits")
    with pytest.raises(ModelError, match="the head itself; pass the model"):
        rh.unwrap_model(model.fc)
    with pytest.raises(EmbeddingError, match=r"shape \(classes, dimensions\)"):
        TextGuidedHead(4, torch.tensor(1.0))


def test_attention_is_counted_as_published() -> None:
    """torchvision gives 4.41 GMACs for ViT-B/32; the model's mode and the fused attention make no difference."""
    with torch.device("meta"):
        model = models.vit_b_32()
    assert torch.backends.mha.get_fastpath_enabled()
    assert count_flops(model, torch.empty(1, 3, 224, 224, device="meta")) / 2e9 == pytest.approx(4.409, abs=0.001)
    assert torch.backends.mha.get_fastpath_enabled()
    assert model.training


def test_parameters_of_a_head_with_open_features_cannot_be_counted() -> None:
    with pytest.raises(ModelError, match="lazy parameters"):
        count_parameters(TextGuidedHead(None, (3, 4)))

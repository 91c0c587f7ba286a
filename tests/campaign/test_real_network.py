"""A campaign on a pretrained network and real images, against what is known of both."""

import pytest

import resilient_heads as rh
from helpers.shared_data import cifar10, pretrained_resnet20

pytestmark = pytest.mark.shared_data


def test_resnet20_on_cifar10() -> None:
    images = cifar10(300)
    result = rh.run_campaign(
        pretrained_resnet20(), images, protocol="raw", trials_per_site=100, batch_size=100, progress=False
    )
    summary = result.summary()
    assert len(result.sites) == 20
    assert summary.accuracy.low > 0.75
    network = summary.network.layer_averaged
    assert 0.47 in network.masked  # measured on the same weights when the project began
    assert network.sdc.low > 0.004
    assert network.due.high < 0.02
    top = result.by_bit()
    assert sum(bit.rates["sdc"].value * bit.trials for bit in top[24:31]) >= 0.9 * sum(
        bit.rates["sdc"].value * bit.trials for bit in top if bit.trials
    )

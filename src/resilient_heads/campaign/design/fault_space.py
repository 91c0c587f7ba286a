"""Which faults one trial draws from: how many are equally likely at a site, and whether each is one bit."""

from collections.abc import Sequence

from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.injection.faults.effects import BitEffect
from resilient_heads.injection.faults.elements import AllElements, ErrorRate, RandomElements
from resilient_heads.injection.faults.fault_model import FaultModel

SINGLE_FLIP = FaultModel()
"""Flip one bit of one neuron, both drawn uniformly."""


def fault_places(fault: FaultModel, site: CampaignSite) -> int:
    """Return among how many places at a site one trial draws uniformly; a mean over sites weighs them by this number.

    The places are bits if the fault draws a bit; values if it replaces values, or acts on bits that it names; groups of
    values if they share the word. A fault that acts on a whole tensor, or is drawn once for all images, has one place.
    """
    if isinstance(fault.elements, AllElements | ErrorRate) or fault.elements.fixed:
        return 1
    return _words(fault, site) * _bits_per_word(fault, site)


def is_one_bit(fault: FaultModel) -> bool:
    """Whether each trial acts on one bit of one word, drawn anew: only then a rate says how many bits are harmful."""
    one_word = isinstance(fault.elements, RandomElements) and fault.elements.count == 1 and not fault.elements.fixed
    return one_word and isinstance(fault.effect, BitEffect) and _bits_acted_on(fault.effect) == 1


def drawn_bits(fault: FaultModel, site: CampaignSite) -> Sequence[int]:
    """Return the positions of the bits that trials of a fault of one bit act on."""
    assert isinstance(fault.effect, BitEffect)
    return fault.effect.bits or range(fault.width(site.site.word_bits))


def _bits_acted_on(effect: BitEffect) -> int:
    return effect.count if effect.bits is None else len(effect.bits)


def _words(fault: FaultModel, site: CampaignSite) -> int:
    """Return the number of words of one image's part of the tensor."""
    neurons = site.site.neurons
    return fault.format.groups(neurons) if fault.format is not None and fault.shared else neurons


def _bits_per_word(fault: FaultModel, site: CampaignSite) -> int:
    """Return the number of bits of a word among which a trial draws; 1 where it draws none."""
    draws_bits = isinstance(fault.effect, BitEffect) and fault.effect.bits is None
    return fault.width(site.site.word_bits) if draws_bits else 1

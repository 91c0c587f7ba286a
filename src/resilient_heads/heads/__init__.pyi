from .cost import count_flops as count_flops
from .cost import count_parameters as count_parameters
from .find.candidates import Classifier as Classifier
from .find.locate import find_classifiers as find_classifiers
from .fused_cosine import FusedCosineHead as FusedCosineHead
from .protection.monitor import ProtectionCounts as ProtectionCounts
from .swap.warm_start import WarmStart as WarmStart
from .swap.warm_start import warm_start_ as warm_start_

"""The layout of Megvii's ShuffleNet-Series, the authors' own code in PyTorch.

Units of all stages follow one another in ``features``. In V1 the shuffle stands behind the depthwise
convolution and is the inverse of the paper's; in V2 a basic unit takes the even and the odd channels of the
unit before, and the left branch of a downsampling unit keeps the number of its channels. The classifier has
no bias. Images are BGR, 0 to 255, not normalised: a network that gets them otherwise gives wrong answers.
"""

from itertools import accumulate
from types import MappingProxyType

from shufflectl.models.checkpoints.layout import (
    STANDARD_UNITS,
    Layout,
    carry_through_depthwise,
    spelling,
)
from shufflectl.models.preprocess import MEGVII

__all__ = ["LAYOUTS"]

_FIRST = (0, *accumulate(STANDARD_UNITS))
_AROUND = {"conv1.0": "first_conv.0", "conv1.1": "first_conv.1", "fc": "classifier.0"}
_TRAIN = "ToBGRTensor, megvii-model/ShuffleNet-Series, ShuffleNetV1/train.py"


def _unit(stage: int, index: int) -> str:
    return f"features.{_FIRST[stage - 2] + index}"


LAYOUTS = (
    Layout(
        "megvii",
        "shufflenet_v1",
        "ShuffleNetV1 0.5x to 2.0x, group 3 and 8",
        "megvii-model/ShuffleNet-Series, ShuffleNetV1/network.py and blocks.py",
        spell=spelling(
            _unit,
            {
                "compress.0": "branch_main_1.0",
                "compress.1": "branch_main_1.1",
                "depthwise.0": "branch_main_1.3",
                "depthwise.1": "branch_main_1.4",
                "expand.0": "branch_main_2.0",
                "expand.1": "branch_main_2.1",
            },
            _AROUND,
        ),
        conventions=MappingProxyType({"shuffle": "inverse"}),
        reorder=carry_through_depthwise,
        optional=frozenset({"fc.bias"}),
        units=STANDARD_UNITS,
        preprocess=MEGVII,
        preprocess_source=_TRAIN,
    ),
    Layout(
        "megvii",
        "shufflenet_v2",
        "ShuffleNetV2 0.5x to 2.0x",
        "megvii-model/ShuffleNet-Series, ShuffleNetV2/network.py and blocks.py",
        spell=spelling(
            _unit,
            {f"branch1.{i}": f"branch_proj.{i}" for i in range(4)}
            | {f"branch2.{i}": f"branch_main.{i}" for i in range(7)},
            _AROUND | {"conv5.0": "conv_last.0", "conv5.1": "conv_last.1"},
        ),
        conventions=MappingProxyType({"split": "parity", "shortcut": "inputs"}),
        optional=frozenset({"fc.bias"}),
        units=STANDARD_UNITS,
        preprocess=MEGVII,
        preprocess_source=_TRAIN,
    ),
)

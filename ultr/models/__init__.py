"""The click models: towers wired to one of three distributions over click vectors.

Every constructor takes towers by keyword; a tower is a `towers.Tower` or any other callable from `Sessions` to logits
[B, K] (an `nnx.Module` is trained, a plain function is not). What a tower's logit means is the name of its slot.
"""

from ultr.models.base import ClickModel, ClickOrSkip, LatentVariable, LatentVariableModel, SlotModel
from ultr.models.cascades import CCM, DBN, DCM, SDBN, CascadeModel
from ultr.models.frailty import Frailty
from ultr.models.mixture import Mixture
from ultr.models.positions import DCTR, GCTR, PBM, RCTR, RDCTR, UBM, AdditivePBM, TrustPBM

__all__ = [
    "CCM",
    "DBN",
    "DCM",
    "DCTR",
    "GCTR",
    "PBM",
    "RCTR",
    "RDCTR",
    "SDBN",
    "UBM",
    "AdditivePBM",
    "CascadeModel",
    "ClickModel",
    "ClickOrSkip",
    "Frailty",
    "LatentVariable",
    "LatentVariableModel",
    "Mixture",
    "SlotModel",
    "TrustPBM",
]

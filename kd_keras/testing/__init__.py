"""The contracts of losses, models and data sets as functions, for your own parts as for the package's.

    from kd_keras import testing

    testing.check_loss(MyLoss(temperature=2.0))
    testing.check_model(MyNet)
    testing.check_data(MyData("photos"))

Each raises an `AssertionError` that says what is wrong and what the contract is. They need no test runner. Each check
is also a function of its own, in `LOSS_CHECKS`, `MODEL_CHECKS` and `DATA_CHECKS`, to be reported one by one.
"""

from kd_keras.testing.data import DATA_CHECKS, check_data
from kd_keras.testing.losses import LOSS_CHECKS, LossCase, check_loss, example_taps
from kd_keras.testing.models import MODEL_CHECKS, ModelCase, check_model

__all__ = [
    "DATA_CHECKS",
    "LOSS_CHECKS",
    "MODEL_CHECKS",
    "LossCase",
    "ModelCase",
    "check_data",
    "check_loss",
    "check_model",
    "example_taps",
]

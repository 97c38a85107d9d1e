"""What says nothing of two classes is refused by name before anything is trained."""

import pytest

from kd_keras import Distiller, spec
from kd_keras.errors import InputError
from kd_keras.models import cnn


@pytest.fixture(scope="module")
def pair():
    return [cnn.CNN(2, (8, 8, 1), filters=(n,), dense=()) for n in (2, 3)]


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ("dkd()", "dkd(beta=8.0) is void for two classes"),
        ("nkd()", "nkd(gamma=1.5) is void for two classes"),
        ("dist()", "dist(beta=1.0) is void for two classes"),
        ("kd(standardize=True)", "kd(standardize=True) is void for two classes"),
        ("mlkd(standardize=True)", "mlkd(standardize=True) is void for two classes"),
    ],
)
def test_two_classes_are_refused_when_the_distiller_is_made(pair, loss, told):
    with pytest.raises(InputError) as error:
        Distiller(student=pair[0], teacher=pair[1], losses=[spec.build("kd_keras.losses", spec.parse(loss))])
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


@pytest.mark.parametrize("loss", ["dkd(beta=0.0)", "nkd(gamma=0.0)", "dist(beta=0.0)", "kd()", "mlkd()", "rkd()"])
def test_what_says_something_is_taken(pair, loss):
    Distiller(student=pair[0], teacher=pair[1], losses=[spec.build("kd_keras.losses", spec.parse(loss))])

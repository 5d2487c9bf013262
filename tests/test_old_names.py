"""Import paths of version 0.1 resolve until 2.0, each with a DeprecationWarning that names the new one."""

from __future__ import annotations

import importlib
import sys

import pytest

import deltaprop as dp
from deltaprop._old_names import MOVED

_ACTIVATIONS = "ELU GELU Identity LeakyReLU LogSoftmax ReLU SiLU Sigmoid Softmax Softplus Step Tanh"
PUBLIC = {  # the public names of version 0.1
    "modules": f"{_ACTIVATIONS} Activation Linear MLP activation_module from_torch to_torch",
    "initialization": "INITS initialize",
    "perceptron": "Perceptron PerceptronFit",
    "ops": "ACTIVATIONS Activation Elementwise Linear CrossEntropy MSE L1 Huber Quadratic ResidualLoss primitive",
    "ops.activations": f"{_ACTIVATIONS} Activation Elementwise",
    "ops.cross_entropy": "CrossEntropy",
    "ops.linear": "Linear linear_forward linear_grad_weight linear_grad_bias",
    "ops.losses": "MSE L1 Huber Quadratic BinaryCrossEntropy ResidualLoss",
    "ops.primitive": "primitive",
    "verify.comparing": "Comparison",
    "verify.gradients": "check_gradients",
    "verify.observe": "LayerView observe",
    "verify.report": "Check GradientReport",
    "verify.trace": "Trace TracedLayer trace",
    "trained": "Model load",
    "trained.judging": "Judgement",
    "trained.model": "Model load",
    "estimators": "MLPClassifier MLPRegressor",
    "estimators.classifier": "MLPClassifier",
    "estimators.regressor": "MLPRegressor",
    "export": "FORMATS Exported Whole export",
    "data.idx": "read_idx load_idx_folder",
    "layers": "read_layers",
    "training.reporter": "Reporter Result Silent",
    "training.console": "ConsoleReporter",
}


@pytest.mark.parametrize("old", PUBLIC)
@pytest.mark.filterwarnings("ignore:deltaprop:DeprecationWarning")
def test_public_names_of_0_1_resolve(old: str):
    sys.modules.pop(f"deltaprop.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"deltaprop.{old} is deltaprop.{MOVED[old]} now"):
        module = importlib.import_module(f"deltaprop.{old}")
    for name in PUBLIC[old].split():
        assert getattr(module, name) is not None


@pytest.mark.parametrize("old", MOVED)
@pytest.mark.filterwarnings("ignore:deltaprop:DeprecationWarning")
def test_each_old_path_gives_its_new_module(old: str):
    assert (
        importlib.import_module(f"deltaprop.{old}").__doc__
        == importlib.import_module(f"deltaprop.{MOVED[old]}").__doc__
    )


@pytest.mark.filterwarnings("ignore:deltaprop:DeprecationWarning")
def test_an_old_path_gives_the_same_class():
    from deltaprop.modules import MLP

    assert MLP is dp.MLP
    assert dp.modules.MLP is dp.MLP  # also as an attribute of the package


def test_the_warning_points_to_the_import_line():
    sys.modules.pop("deltaprop.perceptron", None)
    with pytest.warns(DeprecationWarning, match="deltaprop.perceptron is") as caught:
        from deltaprop.perceptron import Perceptron
    assert Perceptron is dp.Perceptron
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("ignore:deltaprop:DeprecationWarning")
@pytest.mark.parametrize("path", ["modules.init", "verify.given", "perceptron.x"])
def test_submodules_of_a_new_path_are_not_loaded_again_under_the_old_path(path: str):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"deltaprop.{path}")


def test_an_unknown_name_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("deltaprop.modles")
    with pytest.raises(AttributeError):
        dp.modles  # noqa: B018


@pytest.mark.parametrize(("old", "new"), [("Choices", "TableOptions"), ("Room", "CacheConfig")])
def test_old_names_in_a_package_that_has_kept_its_path(old: str, new: str):
    from deltaprop import data

    with pytest.warns(DeprecationWarning, match=f"{old} is {new} now"):
        assert getattr(data, old) is getattr(data, new)
    with pytest.raises(AttributeError, match=r"'deltaprop\.data' has no attribute 'Subject'"):
        data.Subject  # noqa: B018  # renamed, but of another package

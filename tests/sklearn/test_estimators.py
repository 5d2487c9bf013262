"""The estimators: scikit-learn's conventions, the same weights as scikit-learn's, and no changed global state."""
# ruff: noqa: N806  # X is scikit-learn's name

from __future__ import annotations

import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from deltaprop import MLP, ExplicitTrainer, UserError, core
from deltaprop.sklearn import MLPClassifier, MLPRegressor, base
from deltaprop.training import engines
from sklearn import datasets, neural_network

# Most of these fits stop early; a test of the warning expects it explicitly.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

Data = tuple[Any, Any]
ESTIMATORS = [MLPClassifier, MLPRegressor]


@pytest.fixture(scope="module")
def iris() -> Data:
    """150 flowers, 4 columns, 3 classes; standardised, for estimators that do not standardise."""
    X, y = datasets.load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def shuffled(iris: Data) -> Data:
    """Iris in random order, so that no batch holds one class only."""
    order = np.random.RandomState(0).permutation(150)
    return iris[0][order], iris[1][order]


def targets(outputs: int, rows: int = 150) -> Data:
    """Return inputs [rows, 5] and smooth targets of them, [rows, outputs] or [rows], of size about 1."""
    X = np.random.RandomState(0).standard_normal((rows, 5))
    return X, np.stack([np.sin(X[:, j]) + 0.5 * X[:, j + 1] for j in range(outputs)], axis=1).squeeze()


def data_for(kind: type) -> Data:
    if kind is MLPRegressor:
        return targets(1)
    X, y = datasets.load_iris(return_X_y=True)
    return X, y


def small(kind: type, **parameters: Any) -> Any:
    rates = {"learning_rate": "constant", "learning_rate_init": 0.05 if kind is MLPClassifier else 0.01}
    rest = {"weight_decay": 0.0, "max_iter": 3, "random_state": 0}
    return kind(**{"hidden_layer_sizes": (8,), **rates, **rest, **parameters})


# --- scikit-learn's conventions ---


def expected_failures(estimator: Any) -> dict[str, str]:
    """A weight of k is exactly k rows if all rows are in one batch (test_sample_weight.py)."""
    return {"check_sample_weight_equivalence_on_dense_data": "rows that are repeated are in several batches of 16"}


@parametrize_with_checks(
    [MLPClassifier(dtype="float32", max_iter=5, learning_rate="constant"), MLPRegressor(dtype="float64", max_iter=5)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learns_estimator_checks_pass(estimator: Any, check: Callable[[Any], None]):
    """With few epochs, and where a check asks for 1000 a constant η, which stops when the loss does; below as it is."""
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [MLPClassifier(dtype="float64"), MLPRegressor(dtype="float32")],
    expected_failed_checks=expected_failures,
)
def test_estimator_checks_pass_with_the_defaults_and_the_other_dtype(estimator: Any, check: Callable[[Any], None]):
    check(estimator)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_parameters_have_scikit_learns_names(kind: type):
    """Only deltaprop's additions have other names; solver, alpha and their parameters do not exist here."""
    reference = set(inspect.signature(getattr(neural_network, kind.__name__).__init__).parameters)
    parameters = set(inspect.signature(kind.__init__).parameters)
    assert not parameters & {"solver", "alpha", "power_t", "beta_1", "beta_2", "epsilon", "max_fun"}
    extra = {"class_weight", "loss"} if kind is MLPClassifier else set()
    assert parameters - reference == {"weight_decay", "init", "dtype", "device", "standardize"} | extra


def test_tags_describe_the_accepted_targets():
    assert not get_tags(MLPClassifier()).classifier_tags.multi_label
    assert get_tags(MLPRegressor()).target_tags.multi_output


def test_estimators_work_in_pipelines_grid_search_and_cross_validation(iris: Data):
    grid = {"mlpclassifier__weight_decay": [0.0, 1e-3], "mlpclassifier__activation": ["relu", "tanh"]}
    search = GridSearchCV(make_pipeline(StandardScaler(), small(MLPClassifier, max_iter=30)), grid, cv=3).fit(*iris)
    assert search.best_score_ > 0.9  # guessing among three classes gives 1/3
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    scores = cross_val_score(small(MLPRegressor, max_iter=100), *targets(2), cv=3)
    assert scores.min() > 0.5  # predicting the mean gives R² = 0


# --- the same weights as scikit-learn's ---


def copy_initial_weights(estimator: Any, reference: Any, data: Data) -> None:
    """Initialise both by a fit with a negligible learning rate, then copy the reference's weights."""
    learning_rate, max_iter = estimator.learning_rate_init, estimator.max_iter
    for either in (estimator, reference):
        either.set_params(learning_rate_init=1e-300, max_iter=1, warm_start=True).fit(*data)
        either.loss_curve_.clear()
        either.set_params(learning_rate_init=learning_rate, max_iter=max_iter)
    for weight, source in zip(
        estimator.coefs_ + estimator.intercepts_, reference.coefs_ + reference.intercepts_, strict=True
    ):
        weight[...] = source  # a view of the model's weights


def paired_estimators(
    kind: type, data: Data, *, alpha: float = 0, weight_decay: float = 0, **parameters: Any
) -> tuple[Any, Any]:
    """Return deltaprop's and scikit-learn's estimator with the same parameters and initial weights, in float64."""
    common = {
        "hidden_layer_sizes": (7, 5), "batch_size": 50, "learning_rate_init": 0.1, "max_iter": 30, "shuffle": False,
        "learning_rate": "constant", "random_state": 0, "tol": 0.0, "n_iter_no_change": 100, **parameters,
    }  # fmt: skip
    reference = getattr(neural_network, kind.__name__)(solver="sgd", alpha=alpha, **common)
    loss = {"loss": "quadratic_loss"} if kind is MLPRegressor else {}
    estimator = kind(standardize=False, dtype="float64", weight_decay=weight_decay, **loss, **common)
    copy_initial_weights(estimator, reference, data)
    return estimator, reference


def assert_same_weights(estimator: Any, reference: Any) -> None:
    """To 1e-10: the rounding of float64, 2e-16, grows over 30 epochs of 3 steps."""
    for actual, expected in zip(
        estimator.coefs_ + estimator.intercepts_, reference.coefs_ + reference.intercepts_, strict=True
    ):
        assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


MOMENTA = [
    pytest.param({"momentum": 0.0}, id="plain"),
    pytest.param({"momentum": 0.9, "nesterovs_momentum": False}, id="momentum"),
    pytest.param({"momentum": 0.9, "nesterovs_momentum": True}, id="nesterov"),
]


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_classifier_has_scikit_learns_weights(shuffled: Data, momentum: dict[str, Any], activation: str):
    """150 rows in batches of 40: the last has 30, and is weighted by that in the mean loss."""
    estimator, reference = paired_estimators(MLPClassifier, shuffled, activation=activation, batch_size=40, **momentum)
    estimator.fit(*shuffled)
    reference.fit(*shuffled)
    assert_same_weights(estimator, reference)
    assert_allclose(estimator.loss_curve_, reference.loss_curve_, rtol=1e-10)
    assert estimator.loss_curve_[-1] < 0.99 * estimator.loss_curve_[0]  # training made progress
    assert_allclose(estimator.predict_proba(shuffled[0]), reference.predict_proba(shuffled[0]), rtol=1e-8)


def test_two_thousand_steps_give_scikit_learns_weights():
    """Digits, with pixels from 0 to 16, for ten epochs of 180 steps."""
    X, y = datasets.load_digits(return_X_y=True)
    data = X / 16, y
    estimator, reference = paired_estimators(
        MLPClassifier, data, hidden_layer_sizes=(30,), batch_size=10, learning_rate_init=0.01, max_iter=10
    )
    assert_same_weights(estimator.fit(*data), reference.fit(*data))
    assert_allclose(estimator.loss_curve_, reference.loss_curve_, rtol=1e-10)
    assert estimator.loss_ < 0.1  # from log 10


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("outputs", [1, 2])
def test_regressor_has_scikit_learns_weights(momentum: dict[str, Any], outputs: int):
    """Both minimise Σ‖a − y‖²/(2N); scikit-learn reports it divided by the number of targets."""
    data = targets(outputs)
    estimator, reference = paired_estimators(MLPRegressor, data, learning_rate_init=0.02, **momentum)
    estimator.fit(*data)
    reference.fit(*data)
    assert_same_weights(estimator, reference)
    assert_allclose(np.array(estimator.loss_curve_) / outputs, reference.loss_curve_, rtol=1e-10)
    assert estimator.loss_curve_[-1] < 0.9 * estimator.loss_curve_[0]
    assert_allclose(estimator.predict(data[0]), reference.predict(data[0]), rtol=1e-8)


def test_weight_decay_is_alpha_over_the_batch(shuffled: Data):
    """λ = α / 50 for batches of 50 rows; biases do not decay in either."""
    estimator, reference = paired_estimators(MLPClassifier, shuffled, alpha=1.0, weight_decay=1.0 / 50)
    assert_same_weights(estimator.fit(*shuffled), reference.fit(*shuffled))


@pytest.mark.skipif(
    "sample_weight" not in inspect.signature(neural_network.MLPClassifier.fit).parameters,
    reason="scikit-learn's fit takes sample_weight from 1.7 on",
)
def test_class_weight_is_scikit_learns_sample_weight(shuffled: Data):
    """A row's weight is that of its class."""
    X, y = shuffled
    weights = {0: 1.0, 1: 5.0, 2: 0.25}
    estimator, reference = paired_estimators(MLPClassifier, shuffled)
    estimator.set_params(class_weight=weights).fit(X, y)
    reference.fit(X, y, sample_weight=np.array([weights[c] for c in y]))
    assert_same_weights(estimator, reference)


def test_balanced_class_weight_is_the_dictionary_of_n_over_c_n_c(iris: Data):
    """50, 50 and 10 rows: 110 / (3 · 50) and 110 / (3 · 10)."""
    X, y = iris[0][:110], iris[1][:110]
    by_hand = {0: 110 / 150, 1: 110 / 150, 2: 110 / 30}
    fits = [small(MLPClassifier, class_weight=weight).fit(X, y) for weight in ("balanced", by_hand)]
    assert_array_equal(fits[0].coefs_[0], fits[1].coefs_[0])
    assert not np.array_equal(fits[0].coefs_[0], small(MLPClassifier).fit(X, y).coefs_[0])


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_partial_fit_has_scikit_learns_weights(shuffled: Data, kind: type):
    """Five calls on two halves in turn with Nesterov's momentum, whose velocities carry over between calls."""
    X, y = shuffled if kind is MLPClassifier else targets(1)
    estimator, reference = paired_estimators(kind, (X, y), learning_rate_init=0.02)
    # scikit-learn keeps the velocities of the fit that gave the initial weights; deltaprop does not: reset them
    del reference._optimizer
    for number in range(5):
        rows = slice(number % 2, None, 2)
        estimator.partial_fit(X[rows], y[rows])
        reference.partial_fit(X[rows], y[rows])
    assert_same_weights(estimator, reference)
    assert_allclose(estimator.loss_curve_, reference.loss_curve_, rtol=1e-10)
    assert estimator.n_iter_ == reference.n_iter_ == 1  # epochs of the last call


def test_training_stops_in_scikit_learns_epoch(shuffled: Data):
    estimator, reference = paired_estimators(MLPClassifier, shuffled, max_iter=500, tol=1e-3, n_iter_no_change=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        estimator.fit(*shuffled)
        reference.fit(*shuffled)
    assert 10 < estimator.n_iter_ == reference.n_iter_ < 500
    assert_allclose(estimator.best_loss_, reference.best_loss_, rtol=1e-10)
    assert_allclose(estimator.loss_, reference.loss_, rtol=1e-10)


def test_early_stopping_keeps_scikit_learns_best_weights():
    """The same validation rows from the same generator, R² after each epoch, and the weights of the best epoch."""
    X, y = targets(1)
    y = y + np.random.RandomState(1).standard_normal(len(y))  # with noise the best epoch comes early
    estimator, reference = paired_estimators(
        MLPRegressor, (X, y), max_iter=200, early_stopping=True, validation_fraction=0.3,
        learning_rate_init=0.05, tol=1e-4, n_iter_no_change=10,
    )  # fmt: skip
    estimator.fit(X, y)
    reference.fit(X, y)
    assert estimator.n_iter_ == reference.n_iter_ < 200
    scores = estimator.validation_scores_[1:]  # the first is from the fit that gave the initial weights
    assert_allclose(scores, reference.validation_scores_[1:], rtol=1e-8)
    assert estimator.best_validation_score_ == max(scores) > scores[-1]
    assert_same_weights(estimator, reference)
    assert estimator.best_loss_ is None


# --- features beyond scikit-learn's ---


def test_standardize_equals_a_pipeline_with_a_scaler():
    """Columns of very different mean and scale; in float64, so that the two differ by rounding only."""
    X, y = targets(2)
    X, y = X * [1, 1e3, 1e-3, 1, 5] + [0, 1e4, 0, -3, 7], y * [100, 0.01] + [5, -2]
    estimator = small(MLPRegressor, dtype="float64").fit(X, y)
    plain = small(MLPRegressor, dtype="float64", standardize=False)
    pipeline = TransformedTargetRegressor(make_pipeline(StandardScaler(), plain), transformer=StandardScaler())
    assert_allclose(estimator.predict(X), pipeline.fit(X, y).predict(X), rtol=1e-9)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_scaling_does_not_depend_on_validation_rows(kind: type):
    X, y = data_for(kind)
    model = small(kind, early_stopping=True, validation_fraction=0.2).fit(X, y)
    strata = y if kind is MLPClassifier else None
    train, _ = train_test_split(X, test_size=0.2, random_state=0, stratify=strata)
    assert_allclose(model.input_scaling_.mean, train.mean(axis=0), rtol=1e-12)
    assert not np.allclose(model.input_scaling_.mean, X.mean(axis=0))


def test_targets_far_from_0_keep_their_precision():
    """Times of about 2e9 seconds that vary by a second, where float32 has a spacing of 128."""
    X, y = targets(1)
    near, far = (small(MLPRegressor, max_iter=20).fit(X, y + offset).predict(X) - offset for offset in (0, 2e9))
    assert_allclose(far, near, atol=1e-5)  # spacing of float64 at 2e9: 2.4e-7; of float32 in deviations: 1e-7


@pytest.mark.parametrize("loss", MLPRegressor._losses)
def test_every_loss_of_the_regressor_learns(loss: str):
    """Predicting the mean gives R² = 0, linear regression on these targets about 0.9."""
    X, y = targets(2)
    assert small(MLPRegressor, loss=loss, max_iter=200).fit(X, y).score(X, y) > 0.8


@pytest.mark.parametrize("activation", [*core.ACTIVATIONS, "logistic"])
def test_every_activation_is_accepted_by_name(activation: str, iris: Data):
    model = small(MLPClassifier, activation=activation).fit(*iris)
    assert type(model.model_[1]) is type(MLP([1, 1, 1], "sigmoid" if activation == "logistic" else activation)[1])


@pytest.mark.parametrize(
    ("load", "accuracy"), [("iris", 0.87), ("wine", 0.93), ("breast_cancer", 0.93), ("digits", 0.95)]
)
def test_default_parameters_learn_to_classify(load: str, accuracy: float):
    """Slightly less than the worst of ten measured splits: 0.889, 0.944, 0.947, 0.967."""
    X, y = getattr(datasets, f"load_{load}")(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)
    assert MLPClassifier(random_state=0).fit(X, y).score(X_test, y_test) > accuracy


def test_default_parameters_learn_regression():
    """The worst of twelve measured folds: 0.87."""
    X, y = datasets.make_friedman1(500, noise=1, random_state=0)
    assert cross_val_score(MLPRegressor(random_state=0), X, y, cv=KFold(3)).mean() > 0.85


def test_columns_of_0_and_1_are_not_standardised():
    """A 1 in 200 rows would be 14 deviations from the mean; many such columns at once make training diverge."""
    X = np.zeros((200, 3))
    X[7, 0], X[::2, 1], X[:, 2] = 1, 1, np.arange(200) % 5
    model = small(MLPRegressor).fit(X, X[:, 2])
    assert model.input_scaling_.mean.tolist() == [0, 0, 2]
    assert model.input_scaling_.scale.tolist() == [1, 1, pytest.approx(2**0.5)]


class TestSchedule:
    def test_eta_falls_along_the_cosine_in_fit_and_is_constant_in_partial_fit(self, monkeypatch: pytest.MonkeyPatch):
        """Of 4 epochs: ½ (1 + cos(π e/4)) = 1, 0.854, 0.5, 0.146."""
        rates: list[float] = []
        plain = ExplicitTrainer.epoch

        def epoch(self: ExplicitTrainer, *args: Any, **options: Any) -> Any:
            rates.append(self.optimizer.param_groups[0]["lr"])
            return plain(self, *args, **options)

        monkeypatch.setattr(ExplicitTrainer, "epoch", epoch)
        model = small(MLPRegressor, learning_rate="cosine", learning_rate_init=0.1, max_iter=4).fit(*targets(1))
        assert rates == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)
        model.partial_fit(*targets(1))
        small(MLPRegressor, learning_rate_init=0.1, max_iter=1).fit(*targets(1))
        assert rates[4:] == [0.1, 0.1]

    def test_there_are_as_many_epochs_as_1000_steps_take_and_no_warning(self, iris: Data):
        """150 rows are 10 steps of 16, and 1000 are 100 epochs; 50 are 1 step of 50. The loss does not stop them."""
        assert MLPClassifier((2,), tol=1e9).fit(*iris).n_iter_ == 100
        assert MLPClassifier((2,), batch_size=50).fit(iris[0][:100:2], iris[1][:100:2]).n_iter_ == 1000
        assert MLPClassifier((2,), max_iter=2).fit(*iris).n_iter_ == 2

    def test_the_score_of_held_out_rows_stops_a_schedule(self, iris: Data):
        model = MLPClassifier((2,), tol=1e9, early_stopping=True, n_iter_no_change=3, random_state=0)
        assert model.fit(*iris).n_iter_ == 5  # the first one improves, and 4 are more than 3

    def test_defaults_are_those_of_train(self):
        """For tables."""
        for kind in ESTIMATORS:
            chosen = kind().get_params()
            expected = {
                "learning_rate_init": 0.01, "learning_rate": "cosine", "weight_decay": 0.01, "momentum": 0.9,
                "batch_size": "auto", "max_iter": None,
            }  # fmt: skip
            assert {name: chosen[name] for name in expected} == expected

    def test_an_estimator_pickled_by_an_older_version_has_a_constant_eta(self, iris: Data):
        model = small(MLPClassifier).fit(*iris)
        del model.__dict__["learning_rate"]
        assert pickle.loads(pickle.dumps(model)).learning_rate == "constant"


# --- attributes and predictions of a fitted estimator ---


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_fitted_attributes_are_scikit_learns(kind: type):
    X, y = data_for(kind)
    model = small(kind, hidden_layer_sizes=(6, 5)).fit(X, y)
    outputs = 3 if kind is MLPClassifier else 1
    assert [w.shape for w in model.coefs_] == [(X.shape[1], 6), (6, 5), (5, outputs)]
    assert [b.shape for b in model.intercepts_] == [(6,), (5,), (outputs,)]
    assert (model.n_layers_, model.n_outputs_, model.n_features_in_, model.n_iter_) == (4, outputs, X.shape[1], 3)
    assert model.out_activation_ == ("softmax" if kind is MLPClassifier else "identity")
    assert model.loss_ == model.loss_curve_[-1]
    assert model.best_loss_ == min(model.loss_curve_)
    assert len(model.loss_curve_) == 3
    assert model.validation_scores_ is model.best_validation_score_ is None
    assert isinstance(model.model_, MLP)
    model.loss_curve_ = [3.0, 1.0, 2.0]
    assert model.best_loss_ == 1.0


def test_labels_may_be_text(iris: Data):
    X, y = iris
    names = np.array(["setosa", "versicolor", "virginica"])
    by_name, by_number = (small(MLPClassifier).fit(X, labels) for labels in (names[y], y))
    assert_array_equal(by_name.classes_, names)
    assert_array_equal(by_name.predict(X), names[by_number.predict(X)])


@pytest.mark.parametrize("classes", [2, 3])
def test_predict_methods_of_a_classifier_agree(iris: Data, classes: int):
    X, y = iris[0][: 50 * classes], iris[1][: 50 * classes]
    model = small(MLPClassifier, dtype="float64").fit(X, y)
    proba, decision = model.predict_proba(X), model.decision_function(X)
    assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
    assert_allclose(model.predict_log_proba(X), np.log(proba), rtol=1e-9)
    assert_array_equal(model.predict(X), proba.argmax(axis=1))
    assert_array_equal(model.predict(X), decision > 0 if classes == 2 else decision.argmax(axis=1))
    if classes == 2:
        assert_allclose(proba[:, 1], 1 / (1 + np.exp(-decision)), rtol=1e-9)


def test_log_probabilities_are_finite_where_probabilities_are_0(iris: Data):
    model = small(MLPClassifier).fit(*iris)
    model.coefs_[-1][...] *= 1e4
    assert (model.predict_proba(iris[0]) == 0).any()
    assert np.isfinite(model.predict_log_proba(iris[0])).all()


def test_verbose_prints_scikit_learns_lines(iris: Data, capsys: pytest.CaptureFixture[str]):
    model = small(MLPClassifier, verbose=True, early_stopping=True).fit(*iris)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"Iteration 1, loss = {model.loss_curve_[0]:.8f}",
        f"Validation score: {model.validation_scores_[0]:.6f}",
    ]
    assert len(lines) == 6
    small(MLPClassifier).fit(*iris)
    assert capsys.readouterr().out == ""


# --- warm start, partial_fit, interruption ---


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_warm_start_continues(kind: type):
    """Two fits of two epochs equal one of four: without momentum, which a new fit resets, and without shuffling."""
    X, y = data_for(kind)
    options = {"momentum": 0.0, "shuffle": False}
    once, twice = small(kind, max_iter=4, **options).fit(X, y), small(kind, max_iter=2, warm_start=True, **options)
    twice.fit(X, y).fit(X, y)
    assert_array_equal(twice.coefs_[0], once.coefs_[0])
    assert twice.loss_curve_ == once.loss_curve_
    assert twice.n_iter_ == 2
    assert len(small(kind, max_iter=2).fit(X, y).fit(X, y).loss_curve_) == 2  # without warm_start training starts again


def test_partial_fit_keeps_the_scaling_of_the_first_call(iris: Data):
    X, y = iris
    model = small(MLPClassifier).partial_fit(X[:50], y[:50], classes=[0, 1, 2])
    mean = model.input_scaling_.mean.clone()
    model.partial_fit(X[50:], y[50:])
    assert torch.equal(model.input_scaling_.mean, mean)
    assert_allclose(mean, X[:50].mean(axis=0), rtol=1e-12)
    assert_array_equal(model.classes_, [0, 1, 2])


def test_partial_fit_reshuffles_and_uses_the_current_learning_rate(iris: Data):
    model = small(MLPClassifier, batch_size=10).partial_fit(*iris, classes=[0, 1, 2])
    before = model.coefs_[0].copy()
    model.set_params(learning_rate_init=1e-30, momentum=0.0).partial_fit(*iris)
    assert_array_equal(model.coefs_[0], before)
    state = model._random.get_state()[2]
    model.partial_fit(*iris)
    assert model._random.get_state()[2] != state  # it drew another seed


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_an_interrupted_fit_keeps_its_weights(kind: type, monkeypatch: pytest.MonkeyPatch):
    class Interrupted(base.ExplicitTrainer):
        epochs = 0

        def epoch(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.epochs += 1
            if self.epochs == 3:
                raise KeyboardInterrupt
            return super().epoch(*args, **kwargs)

    X, y = data_for(kind)
    two = small(kind, max_iter=2).fit(X, y)
    monkeypatch.setattr(base, "ExplicitTrainer", Interrupted)
    with pytest.warns(UserWarning, match="interrupted by user"):
        model = small(kind, max_iter=10).fit(X, y)
    assert model.n_iter_ == 2
    assert_array_equal(model.coefs_[0], two.coefs_[0])


# --- independence of global state ---


@pytest.mark.parametrize("random_state", [None, 0])
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_fit_does_not_change_random_generators_or_threads(kind: type, random_state: int | None):
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2]
        small(kind, random_state=random_state, early_stopping=True).fit(*data_for(kind)).predict(data_for(kind)[0])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert_array_equal(np.random.get_state()[1], before[1])
        assert np.random.get_state()[2] == before[2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_small_networks_train_on_one_thread(iris: Data, monkeypatch: pytest.MonkeyPatch):
    thread_counts = []

    class RecordingTrainer(base.ExplicitTrainer):
        def epoch(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            thread_counts.append(torch.get_num_threads())
            return super().epoch(*args, **kwargs)

    monkeypatch.setattr(base, "ExplicitTrainer", RecordingTrainer)
    torch.set_num_threads(2)
    try:
        small(MLPClassifier).fit(*iris)
    finally:
        torch.set_num_threads(1)
    assert thread_counts == [1, 1, 1]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_same_random_state_gives_the_same_bits(kind: type):
    X, y = data_for(kind)
    first, again, other, none, none_again = (
        small(kind, random_state=seed, batch_size=20).fit(X, y).coefs_[0] for seed in (3, 3, 4, None, None)
    )
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(none, none_again)


def test_concurrent_fits_do_not_share_random_numbers(iris: Data):
    """Drawing this many weights takes long enough for threads to interleave: without the lock 5 of 5 runs failed."""
    fits = [small(MLPClassifier, hidden_layer_sizes=(500, 500), max_iter=1) for _ in range(12)]
    with joblib.parallel_config("threading", n_jobs=4):
        done = joblib.Parallel()(joblib.delayed(fit.fit)(*iris) for fit in fits)
    for model in done:
        assert_array_equal(model.coefs_[1], done[0].coefs_[1])


@pytest.mark.parametrize("copied", ["pickle", "joblib"])
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_saved_estimator_predicts_the_same_bits(kind: type, copied: str):
    X, y = data_for(kind)
    model = small(kind, activation="gelu").fit(X, y)
    if copied == "pickle":
        loaded = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        joblib.dump(model, file)
        file.seek(0)
        loaded = joblib.load(file)
    assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.get_params() == model.get_params()


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_saved_estimator_holds_its_weights_and_no_buffers(kind: type):
    """4 bytes a weight, 16 kB for the rest (2.5 kB for NumPy's generator); a batch of activations would take 400 kB."""
    X, y = data_for(kind)
    model = small(kind, hidden_layer_sizes=(1000,)).fit(X, y)
    weights = 4 * sum(w.size for w in model.coefs_ + model.intercepts_)
    assert weights < len(pickle.dumps(model)) < weights + 16_000


def test_a_saved_estimator_continues_with_its_momentum(iris: Data):
    model = small(MLPClassifier).partial_fit(*iris, classes=[0, 1, 2])
    loaded = pickle.loads(pickle.dumps(model))
    assert_array_equal(loaded.partial_fit(*iris).coefs_[0], model.partial_fit(*iris).coefs_[0])


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_clone_has_the_parameters_and_is_not_fitted(kind: type):
    model = small(kind, activation="tanh", weight_decay=0.5).fit(*data_for(kind))
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    assert not hasattr(copied, "coefs_")
    with pytest.raises(NotFittedError):
        copied.predict(data_for(kind)[0])


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_estimators_train_on_a_device(kind: type, device: str):
    X, y = data_for(kind)
    model = small(kind, device=device, max_iter=30).fit(X, y)
    assert next(model.model_.parameters()).device.type == device
    assert_allclose(model.predict(X[:5]), small(kind, max_iter=30).fit(X, y).predict(X[:5]), rtol=1e-3)


# --- errors and warnings ---


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes must be whole numbers > 0, got (3, 0)"),
        ({"hidden_layer_sizes": 2.5}, "hidden_layer_sizes must be whole numbers > 0, got 2.5"),
        ({"activation": "sigmiod"}, "unknown activation 'sigmiod': did you mean 'sigmoid'?"),
        ({"init": "glorot"}, "unknown init 'glorot'"),
        ({"loss": "mse"}, "unknown loss 'mse'"),
        ({"batch_size": 0}, "batch_size must be 'auto' or a whole number above 0, got 0"),
        ({"batch_size": "all"}, "batch_size must be 'auto' or a whole number above 0, got 'all'"),
        ({"learning_rate_init": 0}, "learning_rate_init must be a number above 0, got 0"),
        ({"learning_rate_init": float("nan")}, "learning_rate_init must be a number above 0, got nan"),
        ({"max_iter": 1.5}, "max_iter must be None or a whole number above 0, got 1.5"),
        ({"tol": -1}, "tol must be a number, at least 0, got -1"),
        ({"n_iter_no_change": 0}, "n_iter_no_change must be a whole number above 0, or inf, got 0"),
        ({"momentum": 1.1}, "momentum must be a number from 0 to 1, got 1.1"),
        ({"weight_decay": -0.1}, "weight_decay must be a number, at least 0, got -0.1"),
        ({"validation_fraction": 1}, "validation_fraction must be a number between 0 and 1, got 1"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'float64', got 'float16'"),
        ({"device": "gpu"}, "`device` must be auto, cpu, cuda, cuda:N or mps, got gpu"),
        ({"device": None}, "device must be a name, such as 'cpu' or 'cuda', got None"),
        ({"shuffle": "no"}, "shuffle must be True or False, got 'no'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_parameter_out_of_range_is_refused(kind: type, parameters: dict[str, Any], message: str):
    with pytest.raises(UserError) as refused:
        small(kind, **parameters).fit(*data_for(kind))
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "parameters", [{"n_iter_no_change": np.inf}, {"batch_size": np.int64(7)}, {"tol": np.float32(0)}]
)
def test_parameters_may_be_numpy_numbers(iris: Data, parameters: dict[str, Any]):
    assert small(MLPClassifier, hidden_layer_sizes=np.array([4, 4]), **parameters).fit(*iris).n_iter_ == 3


def test_multilabel_targets_are_refused():
    X, y = datasets.make_multilabel_classification(20, random_state=0)
    with pytest.raises(UserError, match=r"one label per row, got \[20, 5\].*MultiOutputClassifier"):
        MLPClassifier().fit(X, y)


def test_a_single_class_is_refused(iris: Data):
    with pytest.raises(UserError, match="two classes or more, got one class: 0"):
        MLPClassifier().fit(iris[0][:50], iris[1][:50])


def test_partial_fit_refuses_changed_targets_and_unsupported_options(iris: Data):
    X, y = iris
    with pytest.raises(UserError, match="the first partial_fit needs classes"):
        MLPClassifier().partial_fit(X, y)
    with pytest.raises(UserError, match="does not support early_stopping"):
        MLPRegressor(early_stopping=True).partial_fit(X, y)
    with pytest.raises(UserError, match="class_weight='balanced' needs all rows at once"):
        MLPClassifier(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
    model = small(MLPClassifier).partial_fit(X[:100], y[:100], classes=[0, 1])
    with pytest.raises(UserError, match=r"classes must be those of the first call, \[0, 1\], got \[0, 1, 2\]"):
        model.partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(UserError, match=r"labels must be among the classes \[0, 1\], got \[2\]"):
        model.partial_fit(X, y)
    with pytest.raises(UserError, match="y must hold 1 targets per row, as in the first call, got 2"):
        small(MLPRegressor).partial_fit(*targets(1)).partial_fit(*targets(2))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hidden_layer_sizes": 9}, r"hidden_layer_sizes of a trained model cannot change from \(8,\) to \(9,\)"),
        ({"dtype": "float64"}, "dtype of a trained model cannot change from 'float32' to 'float64'"),
        ({"standardize": False}, "standardize of a trained model cannot change from True to False"),
    ],
)
def test_a_warm_start_refuses_another_model(iris: Data, parameters: dict[str, Any], message: str):
    model = small(MLPClassifier, warm_start=True).fit(*iris)
    with pytest.raises(UserError, match=message):
        model.set_params(**parameters).fit(*iris)


def test_a_class_weight_of_0_is_refused(iris: Data):
    with pytest.raises(UserError, match=r"class_weight must be above 0 for each class, got \[0.0, 1.0, 1.0\]"):
        MLPClassifier(class_weight={0: 0, 1: 1, 2: 1}).fit(*iris)


def test_a_single_validation_row_is_refused(iris: Data):
    """0.01 of 20 rows is rounded up to one validation row."""
    with pytest.raises(UserError, match="leaves 1 row to validate on"):
        MLPRegressor(early_stopping=True, validation_fraction=0.01).fit(iris[0][:20], iris[1][:20])


def test_divergence_is_reported_before_scoring():
    """With validation rows: scikit-learn's R² would only report that its input contains NaN."""
    X, y = targets(1)
    model = small(MLPRegressor, standardize=False, early_stopping=True, learning_rate_init=1e38, batch_size=135)
    with pytest.raises(UserError, match="training has diverged: an output is non-finite"):
        model.fit(1e3 * X, y)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"learning_rate_init": 1e38, "max_iter": 50}, r"the loss of epoch \d+"),
        # float32 ends at 3.4e38: the only step makes weights infinite after its loss was computed
        ({"learning_rate_init": 1e38, "max_iter": 1, "batch_size": 150}, "a weight"),
    ],
)
def test_divergence_is_reported_and_the_estimator_is_not_fitted(kind: type, parameters: dict[str, Any], what: str):
    X, y = data_for(kind)
    X, model = 1e3 * X, small(kind, standardize=False, **parameters)
    with pytest.raises(ValueError, match=f"training has diverged: {what} is non-finite; lower learning_rate_init=1e"):
        model.fit(X, y)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_reaching_max_iter_warns(iris: Data):
    with pytest.warns(ConvergenceWarning, match="max_iter=2 reached and training has not converged") as caught:
        small(MLPClassifier, max_iter=2).fit(*iris)
    assert caught[0].filename == __file__  # at the line that called fit


def test_a_batch_larger_than_the_data_is_clipped_with_a_warning(iris: Data):
    with pytest.warns(UserWarning, match="batch_size=1000 is clipped to the 150 rows there are") as caught:
        clipped = small(MLPClassifier, batch_size=1000).fit(*iris)
    assert [warning.filename for warning in caught if "clipped" in str(warning.message)] == [__file__]
    assert_array_equal(clipped.coefs_[0], small(MLPClassifier, batch_size=150).fit(*iris).coefs_[0])


def test_batch_size_auto_is_16_or_all_rows():
    """min(16, N)."""
    for rows, batch in ((15, 15), (45, 16)):
        X, y = targets(1, rows)
        fits = [small(MLPRegressor, batch_size=size).fit(X, y) for size in ("auto", batch)]
        assert_array_equal(fits[0].coefs_[0], fits[1].coefs_[0])


@pytest.mark.usefixtures("compiler")
def test_a_long_fit_is_compiled(monkeypatch: pytest.MonkeyPatch):
    """Long are 2^15 steps, here 160: 10 epochs of 16 batches. The losses are the explicit engine's, up to rounding."""
    assert engines.REPAID == 2**15
    monkeypatch.setattr(engines, "REPAID", 160)
    x = np.random.default_rng(0).normal(size=(16, 3))
    y = x @ [1.0, -2.0, 0.5]
    fits = {}
    for epochs in (10, 9):
        net = MLPRegressor((4,), batch_size=1, max_iter=epochs, tol=0, dtype="float64", random_state=0)
        net.set_params(learning_rate="constant")  # the cosine depends on max_iter
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            fits[epochs] = net.fit(x, y)
    assert [fit.engine_ for fit in fits.values()] == ["compiled", "explicit"]
    np.testing.assert_allclose(fits[10].loss_curve_[:9], fits[9].loss_curve_, rtol=1e-12)

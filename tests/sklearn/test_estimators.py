"""The estimators: scikit-learn's rules kept, its own weights found again, nothing of the caller's touched."""
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
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from deltaprop import MLP, UserError, core
from deltaprop.sklearn import MLPClassifier, MLPRegressor, base
from sklearn import datasets, neural_network

# Most of these fits are broken off early; a test that means the warning asks for it.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

Data = tuple[Any, Any]
PAIR = [MLPClassifier, MLPRegressor]


@pytest.fixture(scope="module")
def iris() -> Data:
    """150 flowers, 4 columns, 3 classes; standardised, for those that do not do it themselves."""
    X, y = datasets.load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def mixed(iris: Data) -> Data:
    """The same in another order, so that no batch is of one class."""
    order = np.random.RandomState(0).permutation(150)
    return iris[0][order], iris[1][order]


def targets(outputs: int, rows: int = 150) -> Data:
    """Return inputs [rows, 5] and as many smooth targets of them, about 1 in size."""
    X = np.random.RandomState(0).standard_normal((rows, 5))
    return X, np.stack([np.sin(X[:, j]) + 0.5 * X[:, j + 1] for j in range(outputs)], axis=1).squeeze()


def data_for(kind: type) -> Data:
    if kind is MLPRegressor:
        return targets(1)
    X, y = datasets.load_iris(return_X_y=True)
    return X, y


def small(kind: type, **parameters: Any) -> Any:
    return kind(**{"hidden_layer_sizes": (8,), "max_iter": 3, "random_state": 0, **parameters})


# --- scikit-learn's rules ---


@parametrize_with_checks([MLPClassifier(dtype="float32"), MLPRegressor(dtype="float64")])
def test_scikit_learns_own_checks_pass(estimator: Any, check: Callable[[Any], None]):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([MLPClassifier(dtype="float64"), MLPRegressor(dtype="float32")])
def test_they_pass_in_the_other_dtype_too(estimator: Any, check: Callable[[Any], None]):
    check(estimator)


@pytest.mark.parametrize("kind", PAIR)
def test_parameters_are_scikit_learns_where_they_mean_the_same(kind: type):
    """Only our own have other names; solver, alpha and learning_rate's schedules mean nothing here."""
    theirs = set(inspect.signature(getattr(neural_network, kind.__name__).__init__).parameters)
    ours = set(inspect.signature(kind.__init__).parameters)
    assert not ours & {"solver", "alpha", "learning_rate", "power_t", "beta_1", "beta_2", "epsilon", "max_fun"}
    own = ours - theirs
    extra = {"class_weight", "loss"} if kind is MLPClassifier else set()
    assert own == {"weight_decay", "init", "dtype", "device", "standardize"} | extra


def test_tags_say_what_targets_they_take():
    assert not get_tags(MLPClassifier()).classifier_tags.multi_label
    assert get_tags(MLPRegressor()).target_tags.multi_output


def test_they_work_in_pipelines_searches_and_validation(iris: Data):
    grid = {"mlpclassifier__weight_decay": [0.0, 1e-3], "mlpclassifier__activation": ["relu", "tanh"]}
    search = GridSearchCV(make_pipeline(StandardScaler(), small(MLPClassifier, max_iter=30)), grid, cv=3).fit(*iris)
    assert search.best_score_ > 0.9  # three classes: guessing has 1/3
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert cross_val_score(small(MLPRegressor, max_iter=100), *targets(2), cv=3).min() > 0.5  # guessing has R² = 0


# --- the same weights as scikit-learn's ---


def start_alike(ours: Any, theirs: Any, data: Data) -> None:
    """Give both the same initial weights: theirs, left by a fit whose steps are too small to move."""
    rates = ours.learning_rate_init, ours.max_iter
    for estimator in (ours, theirs):
        estimator.set_params(learning_rate_init=1e-300, max_iter=1, warm_start=True).fit(*data)
        estimator.loss_curve_.clear()
        estimator.set_params(learning_rate_init=rates[0], max_iter=rates[1])
    for own, given in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        own[...] = given  # a view of the model's weights


def twins(kind: type, data: Data, *, alpha: float = 0, weight_decay: float = 0, **parameters: Any) -> tuple[Any, Any]:
    """Return ours and theirs, of the same parameters and the same initial weights, in float64."""
    common = {
        "hidden_layer_sizes": (7, 5), "batch_size": 50, "learning_rate_init": 0.1, "max_iter": 30, "shuffle": False,
        "random_state": 0, "tol": 0.0, "n_iter_no_change": 100, **parameters,
    }  # fmt: skip
    theirs = getattr(neural_network, kind.__name__)(solver="sgd", alpha=alpha, learning_rate="constant", **common)
    loss = {"loss": "quadratic_loss"} if kind is MLPRegressor else {}
    ours = kind(standardize=False, dtype="float64", weight_decay=weight_decay, **loss, **common)
    start_alike(ours, theirs, data)
    return ours, theirs


def assert_same_weights(ours: Any, theirs: Any) -> None:
    """1e-10 relative: float64 has 2e-16, and 30 epochs of 3 steps multiply the rounding of each."""
    for own, other in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        assert_allclose(own, other, rtol=1e-10, atol=1e-12)


MOMENTA = [
    pytest.param({"momentum": 0.0}, id="plain"),
    pytest.param({"momentum": 0.9, "nesterovs_momentum": False}, id="momentum"),
    pytest.param({"momentum": 0.9, "nesterovs_momentum": True}, id="nesterov"),
]


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_classifier_has_scikit_learns_weights(mixed: Data, momentum: dict[str, Any], activation: str):
    """150 rows in batches of 40: the last has 30, and counts as that in the mean."""
    ours, theirs = twins(MLPClassifier, mixed, activation=activation, batch_size=40, **momentum)
    ours.fit(*mixed)
    theirs.fit(*mixed)
    assert_same_weights(ours, theirs)
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-10)
    assert ours.loss_curve_[-1] < 0.99 * ours.loss_curve_[0]  # they went somewhere
    assert_allclose(ours.predict_proba(mixed[0]), theirs.predict_proba(mixed[0]), rtol=1e-8)


def test_two_thousand_steps_keep_to_scikit_learns_weights():
    """Digits, ten epochs of 180 steps; pixels are 0 to 16."""
    X, y = datasets.load_digits(return_X_y=True)
    data = X / 16, y
    ours, theirs = twins(
        MLPClassifier, data, hidden_layer_sizes=(30,), batch_size=10, learning_rate_init=0.01, max_iter=10
    )
    assert_same_weights(ours.fit(*data), theirs.fit(*data))
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-10)
    assert ours.loss_ < 0.1  # from log 10


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("outputs", [1, 2])
def test_regressor_has_scikit_learns_weights(momentum: dict[str, Any], outputs: int):
    """Both descend Σ‖a − y‖²/(2N); the loss that theirs tells is divided by the number of targets besides."""
    data = targets(outputs)
    ours, theirs = twins(MLPRegressor, data, learning_rate_init=0.02, **momentum)
    ours.fit(*data)
    theirs.fit(*data)
    assert_same_weights(ours, theirs)
    assert_allclose(np.array(ours.loss_curve_) / outputs, theirs.loss_curve_, rtol=1e-10)
    assert ours.loss_curve_[-1] < 0.9 * ours.loss_curve_[0]
    assert_allclose(ours.predict(data[0]), theirs.predict(data[0]), rtol=1e-8)


def test_weight_decay_is_alpha_over_the_batch(mixed: Data):
    """λ = α / 50, as all batches have 50 rows; biases do not decay in either."""
    ours, theirs = twins(MLPClassifier, mixed, alpha=1.0, weight_decay=1.0 / 50)
    assert_same_weights(ours.fit(*mixed), theirs.fit(*mixed))


@pytest.mark.skipif(
    "sample_weight" not in inspect.signature(neural_network.MLPClassifier.fit).parameters,
    reason="scikit-learn's own takes no sample_weight before 1.7",
)
def test_class_weight_is_scikit_learns_sample_weight(mixed: Data):
    """A row's weight is that of its class."""
    X, y = mixed
    weights = {0: 1.0, 1: 5.0, 2: 0.25}
    ours, theirs = twins(MLPClassifier, mixed)
    ours.set_params(class_weight=weights).fit(X, y)
    theirs.fit(X, y, sample_weight=np.array([weights[c] for c in y]))
    assert_same_weights(ours, theirs)


def test_balanced_class_weight_is_the_dictionary_of_n_over_c_n_c(iris: Data):
    """Of 50, 50 and 10 rows: 110 / (3 · 50) and 110 / (3 · 10)."""
    X, y = iris[0][:110], iris[1][:110]
    by_hand = {0: 110 / 150, 1: 110 / 150, 2: 110 / 30}
    fits = [small(MLPClassifier, class_weight=weight).fit(X, y) for weight in ("balanced", by_hand)]
    assert_array_equal(fits[0].coefs_[0], fits[1].coefs_[0])
    assert not np.array_equal(fits[0].coefs_[0], small(MLPClassifier).fit(X, y).coefs_[0])


@pytest.mark.parametrize("kind", PAIR)
def test_partial_fit_has_scikit_learns_weights(mixed: Data, kind: type):
    """Five calls on two halves in turn, with Nesterov's momentum: velocities are carried from call to call."""
    X, y = mixed if kind is MLPClassifier else targets(1)
    ours, theirs = twins(kind, (X, y), learning_rate_init=0.02)
    # theirs keeps the velocities of the fit that gave the weights: forget them, as ours does
    del theirs._optimizer
    for number in range(5):
        rows = slice(number % 2, None, 2)
        ours.partial_fit(X[rows], y[rows])
        theirs.partial_fit(X[rows], y[rows])
    assert_same_weights(ours, theirs)
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-10)
    assert ours.n_iter_ == theirs.n_iter_ == 1  # of the last call


def test_training_stops_in_scikit_learns_epoch(mixed: Data):
    ours, theirs = twins(MLPClassifier, mixed, max_iter=500, tol=1e-3, n_iter_no_change=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        ours.fit(*mixed)
        theirs.fit(*mixed)
    assert 10 < ours.n_iter_ == theirs.n_iter_ < 500
    assert_allclose(ours.best_loss_, theirs.best_loss_, rtol=1e-10)
    assert_allclose(ours.loss_, theirs.loss_, rtol=1e-10)


def test_early_stopping_keeps_scikit_learns_best_weights():
    """The same rows are held out, by the same generator: R² after each epoch, and the weights of the best."""
    X, y = targets(1)
    y = y + np.random.RandomState(1).standard_normal(len(y))  # noise, so that the score has a best epoch early
    ours, theirs = twins(MLPRegressor, (X, y), max_iter=200, early_stopping=True, validation_fraction=0.3,
                         learning_rate_init=0.05, tol=1e-4, n_iter_no_change=10)  # fmt: skip
    ours.fit(X, y)
    theirs.fit(X, y)
    assert ours.n_iter_ == theirs.n_iter_ < 200
    scores = ours.validation_scores_[1:]  # the first is of the fit that gave the initial weights
    assert_allclose(scores, theirs.validation_scores_[1:], rtol=1e-8)
    assert ours.best_validation_score_ == max(scores) > scores[-1]
    assert_same_weights(ours, theirs)
    assert ours.best_loss_ is None


# --- what is ours ---


def test_standardize_is_a_pipeline_with_a_scaler():
    """Columns of very different size and place; float64, so that the two differ by rounding alone."""
    X, y = targets(2)
    X, y = X * [1, 1e3, 1e-3, 1, 5] + [0, 1e4, 0, -3, 7], y * [100, 0.01] + [5, -2]
    ours = small(MLPRegressor, dtype="float64").fit(X, y)
    plain = small(MLPRegressor, dtype="float64", standardize=False)
    pipeline = TransformedTargetRegressor(make_pipeline(StandardScaler(), plain), transformer=StandardScaler())
    assert_allclose(ours.predict(X), pipeline.fit(X, y).predict(X), rtol=1e-9)


@pytest.mark.parametrize("kind", PAIR)
def test_scaling_has_not_seen_the_rows_held_out(kind: type):
    X, y = data_for(kind)
    model = small(kind, early_stopping=True, validation_fraction=0.2).fit(X, y)
    strata = y if kind is MLPClassifier else None
    train, _ = train_test_split(X, test_size=0.2, random_state=0, stratify=strata)
    assert_allclose(model.input_scaling_.mean, train.mean(axis=0), rtol=1e-12)
    assert not np.allclose(model.input_scaling_.mean, X.mean(axis=0))


def test_targets_far_from_0_are_predicted_to_the_digit():
    """Times in seconds since 1970, about 2e9, that vary by a second: a float32 there is 128 wide."""
    X, y = targets(1)
    near, far = (small(MLPRegressor, max_iter=20).fit(X, y + place).predict(X) - place for place in (0, 2e9))
    assert_allclose(far, near, atol=1e-5)  # 2e9 in float64: 2.4e-7 wide; in deviations float32: 1e-7


@pytest.mark.parametrize("loss", MLPRegressor._losses)
def test_every_loss_of_the_regressor_learns(loss: str):
    """Guessing the mean has R² = 0; a line through these targets about 0.9."""
    X, y = targets(2)
    assert small(MLPRegressor, loss=loss, max_iter=200).fit(X, y).score(X, y) > 0.8


@pytest.mark.parametrize("activation", [*core.ACTIVATIONS, "logistic"])
def test_every_activation_can_be_named(activation: str, iris: Data):
    model = small(MLPClassifier, activation=activation).fit(*iris)
    assert type(model.model_[1]) is type(MLP([1, 1, 1], "sigmoid" if activation == "logistic" else activation)[1])


@pytest.mark.parametrize(
    ("load", "accuracy"), [("iris", 0.85), ("wine", 0.93), ("breast_cancer", 0.93), ("digits", 0.94)]
)
def test_defaults_learn(load: str, accuracy: float):
    """A little less than the worst of ten folds measured: 0.90, 0.944, 0.956, 0.961."""
    X, y = getattr(datasets, f"load_{load}")(return_X_y=True)
    assert (
        cross_val_score(MLPClassifier(random_state=0), X, y, cv=StratifiedKFold(3, shuffle=True, random_state=0)).mean()
        > accuracy
    )


def test_defaults_learn_numbers():
    """Worst of ten folds measured: 0.81."""
    X, y = datasets.make_friedman1(500, noise=1, random_state=0)
    assert cross_val_score(MLPRegressor(random_state=0), X, y, cv=KFold(3)).mean() > 0.75


# --- what a fitted estimator shows ---


@pytest.mark.parametrize("kind", PAIR)
def test_attributes_are_scikit_learns(kind: type):
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


def test_labels_may_be_words(iris: Data):
    X, y = iris
    names = np.array(["setosa", "versicolor", "virginica"])
    words, numbers = (small(MLPClassifier).fit(X, labels) for labels in (names[y], y))
    assert_array_equal(words.classes_, names)
    assert_array_equal(words.predict(X), names[numbers.predict(X)])


@pytest.mark.parametrize("classes", [2, 3])
def test_predictions_of_a_classifier_agree(iris: Data, classes: int):
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


def test_verbose_says_what_scikit_learn_says(iris: Data, capsys: pytest.CaptureFixture[str]):
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


@pytest.mark.parametrize("kind", PAIR)
def test_warm_start_continues(kind: type):
    """Twice two epochs are four, without momentum, which a fit begins anew, and in the same order of rows."""
    X, y = data_for(kind)
    options = {"momentum": 0.0, "shuffle": False}
    once, twice = small(kind, max_iter=4, **options).fit(X, y), small(kind, max_iter=2, warm_start=True, **options)
    twice.fit(X, y).fit(X, y)
    assert_array_equal(twice.coefs_[0], once.coefs_[0])
    assert twice.loss_curve_ == once.loss_curve_
    assert twice.n_iter_ == 2
    assert len(small(kind, max_iter=2).fit(X, y).fit(X, y).loss_curve_) == 2  # without it, from the beginning


def test_partial_fit_keeps_the_scaling_of_the_first_call(iris: Data):
    X, y = iris
    model = small(MLPClassifier).partial_fit(X[:50], y[:50], classes=[0, 1, 2])
    mean = model.input_scaling_.mean.clone()
    model.partial_fit(X[50:], y[50:])
    assert torch.equal(model.input_scaling_.mean, mean)
    assert_allclose(mean, X[:50].mean(axis=0), rtol=1e-12)
    assert_array_equal(model.classes_, [0, 1, 2])


def test_partial_fit_takes_a_new_order_each_time_and_the_present_rate(iris: Data):
    model = small(MLPClassifier, batch_size=10).partial_fit(*iris, classes=[0, 1, 2])
    before = model.coefs_[0].copy()
    model.set_params(learning_rate_init=1e-30, momentum=0.0).partial_fit(*iris)
    assert_array_equal(model.coefs_[0], before)
    state = model._random.get_state()[2]
    model.partial_fit(*iris)
    assert model._random.get_state()[2] != state  # it drew another seed


@pytest.mark.parametrize("kind", PAIR)
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


# --- nothing of the caller's is touched, and nothing depends on it ---


@pytest.mark.parametrize("random_state", [None, 0])
@pytest.mark.parametrize("kind", PAIR)
def test_fit_leaves_random_generators_and_threads_alone(kind: type, random_state: int | None):
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


def test_small_nets_train_on_one_thread(iris: Data, monkeypatch: pytest.MonkeyPatch):
    seen = []

    class Watched(base.ExplicitTrainer):
        def epoch(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().epoch(*args, **kwargs)

    monkeypatch.setattr(base, "ExplicitTrainer", Watched)
    torch.set_num_threads(2)
    try:
        small(MLPClassifier).fit(*iris)
    finally:
        torch.set_num_threads(1)
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("kind", PAIR)
def test_the_same_random_state_gives_the_same_bits(kind: type):
    X, y = data_for(kind)
    first, again, other, none, none_again = (
        small(kind, random_state=seed, batch_size=20).fit(X, y).coefs_[0] for seed in (3, 3, 4, None, None)
    )
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(none, none_again)


def test_fits_in_threads_do_not_draw_from_each_other(iris: Data):
    """So many weights that others come in while they are drawn: without the lock it failed five times in five."""
    fits = [small(MLPClassifier, hidden_layer_sizes=(500, 500), max_iter=1) for _ in range(12)]
    with joblib.parallel_config("threading", n_jobs=4):
        done = joblib.Parallel()(joblib.delayed(fit.fit)(*iris) for fit in fits)
    for model in done:
        assert_array_equal(model.coefs_[1], done[0].coefs_[1])


@pytest.mark.parametrize("copied", ["pickle", "joblib"])
@pytest.mark.parametrize("kind", PAIR)
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


@pytest.mark.parametrize("kind", PAIR)
def test_a_saved_estimator_holds_its_weights_and_no_buffers(kind: type):
    """4 bytes a weight, and 16 kB for all else (NumPy's generator has 2.5); a batch of activations alone has 400."""
    X, y = data_for(kind)
    model = small(kind, hidden_layer_sizes=(1000,)).fit(X, y)
    weights = 4 * sum(w.size for w in model.coefs_ + model.intercepts_)
    assert weights < len(pickle.dumps(model)) < weights + 16_000


def test_a_saved_estimator_continues_with_its_momentum(iris: Data):
    model = small(MLPClassifier).partial_fit(*iris, classes=[0, 1, 2])
    loaded = pickle.loads(pickle.dumps(model))
    assert_array_equal(loaded.partial_fit(*iris).coefs_[0], model.partial_fit(*iris).coefs_[0])


@pytest.mark.parametrize("kind", PAIR)
def test_a_clone_has_the_parameters_and_has_learned_nothing(kind: type):
    model = small(kind, activation="tanh", weight_decay=0.5).fit(*data_for(kind))
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    assert not hasattr(copied, "coefs_")
    with pytest.raises(NotFittedError):
        copied.predict(data_for(kind)[0])


@pytest.mark.parametrize("kind", PAIR)
def test_they_train_on_a_device(kind: type, device: str):
    X, y = data_for(kind)
    model = small(kind, device=device, max_iter=30).fit(X, y)
    assert next(model.model_.parameters()).device.type == device
    assert_allclose(model.predict(X[:5]), small(kind, max_iter=30).fit(X, y).predict(X[:5]), rtol=1e-3)


# --- what is refused, and what is warned of ---


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
        ({"max_iter": 1.5}, "max_iter must be a whole number above 0, got 1.5"),
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
@pytest.mark.parametrize("kind", PAIR)
def test_a_parameter_out_of_range_is_refused(kind: type, parameters: dict[str, Any], message: str):
    with pytest.raises(UserError) as refused:
        small(kind, **parameters).fit(*data_for(kind))
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "parameters", [{"n_iter_no_change": np.inf}, {"batch_size": np.int64(7)}, {"tol": np.float32(0)}]
)
def test_numbers_may_be_numpys(iris: Data, parameters: dict[str, Any]):
    assert small(MLPClassifier, hidden_layer_sizes=np.array([4, 4]), **parameters).fit(*iris).n_iter_ == 3


def test_several_labels_a_row_are_refused():
    X, y = datasets.make_multilabel_classification(20, random_state=0)
    with pytest.raises(UserError, match=r"one label per row, got \[20, 5\].*MultiOutputClassifier"):
        MLPClassifier().fit(X, y)


def test_one_class_is_refused(iris: Data):
    with pytest.raises(UserError, match="two classes or more, got one class: 0"):
        MLPClassifier().fit(iris[0][:50], iris[1][:50])


def test_partial_fit_refuses_other_targets_and_options(iris: Data):
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
    """A hundredth of 20 rows is one."""
    with pytest.raises(UserError, match="leaves 1 row to validate on"):
        MLPRegressor(early_stopping=True, validation_fraction=0.01).fit(iris[0][:20], iris[1][:20])


def test_a_fit_that_diverges_says_so_before_it_is_scored():
    """As below, with rows held out: scikit-learn's R² would only say that its input contains NaN."""
    X, y = targets(1)
    model = small(MLPRegressor, standardize=False, early_stopping=True, learning_rate_init=1e38, batch_size=135)
    with pytest.raises(UserError, match="training has diverged: an output is non-finite"):
        model.fit(1e3 * X, y)


@pytest.mark.parametrize("kind", PAIR)
@pytest.mark.parametrize(
    ("parameters", "what"),
    [
        ({"learning_rate_init": 1e38, "max_iter": 50}, r"the loss of epoch \d+"),
        # float32 ends at 3.4e38: the one step there is makes weights infinite, after its loss
        ({"learning_rate_init": 1e38, "max_iter": 1, "batch_size": 150}, "a weight"),
    ],
)
def test_a_fit_that_diverges_says_so_and_is_not_fitted(kind: type, parameters: dict[str, Any], what: str):
    X, y = data_for(kind)
    X, model = 1e3 * X, small(kind, standardize=False, **parameters)
    with pytest.raises(ValueError, match=f"training has diverged: {what} is non-finite; lower learning_rate_init=1e"):
        model.fit(X, y)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_max_iter_reached_warns(iris: Data):
    with pytest.warns(ConvergenceWarning, match="max_iter=2 reached and training has not converged") as told:
        small(MLPClassifier, max_iter=2).fit(*iris)
    assert told[0].filename == __file__  # at the line that called fit


def test_a_batch_larger_than_the_data_is_clipped_with_a_warning(iris: Data):
    with pytest.warns(UserWarning, match="batch_size=1000 is clipped to the 150 rows there are") as told:
        clipped = small(MLPClassifier, batch_size=1000).fit(*iris)
    assert [warning.filename for warning in told if "clipped" in str(warning.message)] == [__file__]
    assert_array_equal(clipped.coefs_[0], small(MLPClassifier, batch_size=150).fit(*iris).coefs_[0])


def test_batch_size_auto_is_200_or_all_rows():
    """min(200, N), as scikit-learn's."""
    for rows, batch in ((150, 150), (450, 200)):
        X, y = targets(1, rows)
        fits = [small(MLPRegressor, batch_size=size).fit(X, y) for size in ("auto", batch)]
        assert_array_equal(fits[0].coefs_[0], fits[1].coefs_[0])

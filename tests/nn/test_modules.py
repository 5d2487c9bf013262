"""The modules: the same parameters, seeds and state_dicts as torch.nn, and the way there and back."""

from __future__ import annotations

import copy
import io
import pickle
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import deltaprop as dp
from deltaprop import UserError, core
from deltaprop import functional as F
from deltaprop.nn.modules import Activation, activation_module

# Every activation with arguments other than its defaults, where it has any.
ACTIVATIONS = {
    "step": (),
    "identity": (),
    "relu": (),
    "leaky_relu": (0.2,),
    "elu": (0.7,),
    "gelu": ("tanh",),
    "silu": (),
    "softplus": (2.0, 3.0),
    "sigmoid": (),
    "tanh": (),
    "softmax": (0,),
    "log_softmax": (0,),
}


def twin(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return the plain PyTorch model that MLP(sizes) should be."""
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have the same state_dict, keys and bits."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# --- Linear ---


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_torchs(bias):
    """Same seed, same bits; same state_dict; same value; and an isinstance check for nn.Linear holds."""
    torch.manual_seed(3)
    ours = dp.Linear(5, 4, bias)
    torch.manual_seed(3)
    theirs = nn.Linear(5, 4, bias)
    assert isinstance(ours, nn.Linear)
    assert same_bits(ours, theirs)
    x = torch.randn(6, 5)
    assert torch.equal(ours(x), theirs(x))
    assert repr(ours) == repr(theirs)


def test_linear_uses_our_backward():
    """The graph behind a layer's output is the hand-written one."""
    assert dp.Linear(3, 2)(torch.randn(4, 3)).grad_fn.name() == "LinearBackward"


def test_linear_dtype_and_device():
    """Dtype and device reach the parameters."""
    layer = dp.Linear(3, 2, device="meta", dtype=torch.float64)
    assert layer.weight.device.type == "meta"
    assert layer.bias.dtype == torch.float64


# --- activations ---


@pytest.mark.parametrize("name", core.ACTIVATIONS)
def test_activation_modules(name):
    """A module for each row, found under its class name; it calls its op with its constants."""
    arguments = ACTIVATIONS.get(name, ())
    kind = activation_module(name)
    assert getattr(dp.nn, kind.__name__) is kind
    assert name not in ACTIVATIONS or getattr(dp, kind.__name__) is kind
    assert kind.__doc__.startswith("a")  # its formula: a = … or a_i = …
    module, z = kind(*arguments), torch.randn(4, 3)
    assert torch.equal(module(z), core.primitive(core.ACTIVATIONS[name])(z, *arguments))
    assert list(module.state_dict()) == []


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "step"])
def test_activation_modules_agree_with_torch(name):
    """Constants by position and by name, defaults, values and repr are those of the torch.nn module."""
    kind, arguments = activation_module(name), ACTIVATIONS[name]
    theirs = getattr(nn, kind.__name__)
    if name == "gelu":
        named = {"approximate": "tanh"}
        ours, reference = kind(*arguments), theirs(**named)  # keyword alone in PyTorch
    else:
        named = dict(zip(kind.constants, arguments, strict=True))
        ours, reference = kind(*arguments), theirs(*arguments)
    z = torch.randn(4, 3)
    assert torch.equal(ours(z), reference(z))
    assert torch.equal(kind(**named)(z), reference(z))
    assert {c: getattr(ours, c) for c in kind.constants} == named
    if "softmax" not in name:  # whose dim PyTorch guesses by default, with a warning; here it is the last
        assert torch.equal(kind()(z), theirs()(z))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dp.ReLU(inplace=True), ValueError, "inplace=True is not possible here"),
        (lambda: dp.ReLU(True), ValueError, "inplace=True is not possible here"),
        (lambda: dp.LeakyReLU(0.1, False, 3), TypeError, "positional arguments"),
        (lambda: dp.ELU(beta=1), TypeError, "unexpected keyword argument 'beta'"),
        (lambda: activation_module("sigmiod"), UserError, "unknown activation 'sigmiod': did you mean 'sigmoid'"),
        (lambda: activation_module("xyz"), UserError, r"unknown activation 'xyz' \(known: step, identity, relu"),
    ],
    ids=["inplace", "inplace by position", "too many", "unknown", "misspelt", "nothing near"],
)
def test_refused_activations(call, error, message):
    """What does not fit is refused by name; a misspelt activation gets the nearest one suggested."""
    with pytest.raises(error, match=message):
        call()


def test_inplace_false_is_accepted():
    """Code written for torch.nn may say inplace=False."""
    assert "inplace" not in vars(dp.ReLU(inplace=False))


def test_a_new_row_has_a_module(monkeypatch):
    """A class put in the table works by name, has a module, and the module is found for pickle."""

    class Square(core.Elementwise):
        """a = z²;  σ'(z) = 2 z."""

        @staticmethod
        def forward(z: Tensor) -> Tensor:
            return z * z

        @staticmethod
        def derivative(z: Tensor) -> Tensor:
            return 2 * z

    monkeypatch.setitem(core.ACTIVATIONS, "square", Square)
    model = dp.MLP([1, 1, 1], activation="square")
    z = torch.tensor([3.0], requires_grad=True)
    model[1](z).backward()
    assert z.grad.item() == 6.0
    assert type(pickle.loads(pickle.dumps(model[1]))) is type(model[1])


# --- MLP ---


def test_a_slice_is_a_sequential_of_the_same_modules():
    model = dp.MLP([4, 6, 5, 3])
    head, tail = model[:2], model[2:]
    assert type(head) is type(tail) is nn.Sequential
    assert [*head, *tail] == list(model)
    x = torch.randn(2, 4)
    assert torch.equal(tail(head(x)), model(x))
    assert model[0] is next(iter(model))


def test_state_dict_is_the_twins():
    """Keys, shapes and order are the plain Sequential's, with an output activation too; it loads both ways."""
    ours, theirs = dp.MLP([5, 4, 3, 2]), twin(5, 4, 3, 2)
    expected = {
        "0.weight": (4, 5),
        "0.bias": (4,),
        "2.weight": (3, 4),
        "2.bias": (3,),
        "4.weight": (2, 3),
        "4.bias": (2,),
    }
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    x = torch.randn(6, 5)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))
    other = twin(5, 4, 3, 2)
    ours.load_state_dict(other.state_dict())
    assert torch.equal(ours(x), other(x))
    assert list(dp.MLP([5, 4, 3, 2], output_activation="sigmoid").state_dict()) == list(expected)


def test_same_seed_same_bits():
    """Under one seed MLP and its PyTorch twin start from the same bits."""
    torch.manual_seed(7)
    ours = dp.MLP([5, 4, 3, 2], activation="tanh")
    torch.manual_seed(7)
    assert same_bits(ours, twin(5, 4, 3, 2, activation=nn.Tanh))


def test_gradients_are_the_twins():
    """Loss and every ∂C/∂θ of a whole model, N = 6, equal PyTorch's (float64)."""
    ours = dp.MLP([5, 4, 3], activation="sigmoid", dtype=torch.float64)
    theirs = twin(5, 4, 3, activation=nn.Sigmoid).double()
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 3, (6,))
    dp.functional.cross_entropy(ours(x), y).backward()
    nn.functional.cross_entropy(theirs(x), y).backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("activation", "kinds"),
    [
        ("tanh", [dp.Tanh, dp.Tanh]),
        (dp.SiLU, [dp.SiLU, dp.SiLU]),
        (nn.ELU, [dp.ELU, dp.ELU]),
        (dp.LeakyReLU(0.3), [dp.LeakyReLU, dp.LeakyReLU]),
        (["relu", nn.Sigmoid()], [dp.ReLU, dp.Sigmoid]),
        (("gelu", dp.Softplus), [dp.GELU, dp.Softplus]),
        (nn.Hardtanh, [nn.Hardtanh, nn.Hardtanh]),  # no counterpart here: PyTorch's own serves
        ("identity", [dp.Identity, dp.Identity]),
    ],
    ids=["name", "class", "torch class", "instance", "list", "tuple", "foreign", "identity"],
)
def test_activation_arguments(activation, kinds):
    """A name, a class, an instance, or one of these for each hidden layer; torch.nn's become ours."""
    model = dp.MLP([2, 3, 4, 1], activation=activation)
    assert [type(module) for module in model] == [dp.Linear, kinds[0], dp.Linear, kinds[1], dp.Linear]


def test_an_instance_is_copied():
    """One instance given for all layers becomes one module each, constants kept, the given one untouched."""
    given = dp.LeakyReLU(0.3)
    model = dp.MLP([2, 3, 4, 1], activation=given)
    assert model[1] is not given
    assert model[1] is not model[3]
    assert model[1].negative_slope == model[3].negative_slope == 0.3


def test_an_instance_with_a_parameter_is_copied():
    """Each layer has a parameter of its own, with the given one's value."""
    given = nn.PReLU(init=0.1)
    model = dp.MLP([2, 3, 4, 1], activation=given)
    slopes = [given.weight, model[1].weight, model[3].weight]
    assert len({slope.data_ptr() for slope in slopes}) == 3
    assert all(torch.equal(slope, given.weight) for slope in slopes)


def test_output_activation():
    """The output activation is the last module; without hidden layers it is the only one."""
    assert [type(m) for m in dp.MLP([2, 1], output_activation="sigmoid")] == [dp.Linear, dp.Sigmoid]
    assert [type(m) for m in dp.MLP([2, 1], activation="tanh")] == [dp.Linear]


def test_no_bias():
    """bias=False leaves the weights alone."""
    assert list(dp.MLP([2, 3, 1], bias=False).state_dict()) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("row", [row for row in core.ACTIVATIONS if hasattr(nn.functional, row)])
def test_an_activation_given_as_a_function(row: str):
    """PyTorch's, from wherever it is imported, or ours."""
    for place in (F, nn.functional, torch):
        if hasattr(place, row):
            model = dp.MLP([2, 3, 3, 1], [getattr(place, row), "tanh"])
            assert type(model[1]) is dp.nn.activation_module(row)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [3]}, r"sizes must be two or more positive integers, such as \[784, 30, 10\], got \[3\]"),
        ({"sizes": []}, "sizes must be two or more"),
        ({"sizes": [3, 0, 1]}, r"got \[3, 0, 1\]"),
        ({"sizes": [3, 2.0, 1]}, r"got \[3, 2.0, 1\]"),
        ({"sizes": [3, True]}, r"got \[3, True\]"),
        ({"activation": "sigmiod"}, "unknown activation 'sigmiod': did you mean 'sigmoid'?"),
        ({"activation": ["relu"]}, "activation must be one, or a list with one per hidden layer: 2, got 1"),
        ({"activation": ["relu"] * 3}, "one per hidden layer: 2, got 3"),
        ({"activation": 3}, "an activation must be a name, a function such as torch.relu, a module class or .* got 3"),
        ({"activation": torch.sin}, "an activation must be a name, a function such as torch.relu"),
        ({"output_activation": "sofmax"}, "did you mean 'softmax'?"),
        ({"init": "xavior"}, "unknown initialisation 'xavior': did you mean 'xavier'?"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_refused_models(arguments, message):
    """What makes no model is refused in one line that says what would."""
    with pytest.raises(UserError, match=message) as error:
        dp.MLP(**({"sizes": [3, 2, 2, 1]} | arguments))
    assert "\n" not in str(error.value)


# --- a net without nonlinearity is one layer ---


def test_identity_collapses():
    """With a = z the net is one linear map: W = W2 W1, b = W2 b1 + b2."""
    model = dp.MLP([3, 4, 2], activation="identity", dtype=torch.float64)
    first, _, second = model
    weight, bias = second.weight @ first.weight, second.weight @ first.bias + second.bias
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x), x @ weight.T + bias, rtol=1e-12, atol=1e-14)


def test_identity_has_the_collapsed_gradient():
    """Then ∂C/∂x is constant, and the same for every x: a linear map's."""
    model = dp.MLP([3, 4, 1], activation="identity", dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    expected = (model[2].weight @ model[0].weight).expand(5, 3)
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-14)


def test_tanh_does_not_collapse():
    """With tanh the map is not affine: f(x) + f(-x) is not 2 f(0), by far more than rounding."""
    model = dp.MLP([3, 4, 2], activation="tanh", init="normal", dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    assert (model(x) + model(-x) - 2 * model(torch.zeros_like(x))).abs().max() > 0.1


# --- from and to torch.nn ---


class Block(nn.Module):
    """A user's module: a nested layer, a shared activation, a parameter and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.act = nn.LeakyReLU(0.2)
        self.again = self.act
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("offset", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return act(inner(x)) scaled, twice through the activation."""
        return self.again(self.act(self.inner(x)) * self.scale + self.offset)


@pytest.fixture
def model() -> nn.Sequential:
    """A model with every kind of thing in it."""
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), Block(), nn.Dropout(0.5), nn.Linear(3, 2, bias=False))


def test_from_torch_replaces_at_any_depth(model):
    """Linear layers and activations become ours wherever they stand; other modules keep their class."""
    ours = dp.from_torch(model)
    assert type(ours) is nn.Sequential
    assert [type(m) for m in ours] == [dp.Linear, dp.ReLU, Block, nn.Dropout, dp.Linear]
    assert [type(m) for m in ours[2].inner] == [dp.Linear, nn.BatchNorm1d]
    assert type(ours[2].act) is dp.LeakyReLU
    assert ours[2].act.negative_slope == 0.2


def test_from_torch_shares_the_parameters(model):
    """The Parameter and buffer objects are the same ones, under the same names."""
    ours = dp.from_torch(model)
    for kind in ("named_parameters", "named_buffers"):
        one, other = dict(getattr(ours, kind)()), dict(getattr(model, kind)())
        assert list(one) == list(other)
        assert all(one[name] is other[name] for name in one)


def test_from_torch_leaves_the_original_alone(model):
    """The original keeps its modules, and what is registered on one tree later does not reach the other."""
    kinds = [type(m) for m in model.modules()]
    ours = dp.from_torch(model)
    assert [type(m) for m in model.modules()] == kinds
    assert not set(ours.modules()) & set(model.modules())
    called = []
    for i in (0, 2, 3):  # a replaced layer, a user's module, a foreign one
        ours[i].register_forward_hook(lambda *_: called.append("ours"))
        model[i].register_forward_hook(lambda *_: called.append("theirs"))
    x = torch.randn(4, 3)
    ours(x)
    assert called == ["ours"] * 3
    model(x)
    assert called == ["ours"] * 3 + ["theirs"] * 3
    ours[0].register_buffer("added", torch.zeros(1))
    ours.append(nn.ReLU())
    assert "0.added" not in model.state_dict()
    assert len(model) == 5


def test_from_torch_computes_the_same(model):
    """Value and gradients are those of the original, in the user's own forward too."""
    ours = dp.from_torch(model).eval()
    model.eval()
    x = torch.randn(4, 3)
    value, expected = ours(x), model(x)
    torch.testing.assert_close(value, expected)
    grad_output = torch.randn_like(value)
    gradients = torch.autograd.grad(value, list(ours.parameters()), grad_output)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, list(model.parameters()), grad_output))


def test_shared_modules_stay_shared(model):
    """A module that occurs twice occurs twice in the copy, as one."""
    ours = dp.from_torch(model)
    assert ours[2].act is ours[2].again
    tied = nn.Linear(3, 3)
    ours = dp.from_torch(nn.Sequential(tied, nn.Tanh(), tied))
    assert ours[0] is ours[2]


def test_training_mode_is_kept():
    """A module in eval mode is so in the copy."""
    layers = [nn.Linear(2, 2), nn.ReLU(), nn.Dropout()]
    for module in (*layers, nn.Sequential(*layers)):
        assert not dp.from_torch(module.eval()).training
        assert not dp.to_torch(dp.from_torch(module)).training


def test_subclasses_of_linear_are_left_alone():
    """What a subclass adds is not known here: it stays as it is."""

    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    assert type(dp.from_torch(Scaled(2, 2))) is Scaled


@pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax")  # PyTorch's, for what is left alone
def test_softmax_over_a_guessed_axis_is_left_alone():
    """Softmax without dim guesses its axis in PyTorch; it stays PyTorch's. With dim it becomes ours."""
    assert type(dp.from_torch(nn.Softmax())) is nn.Softmax
    assert type(dp.from_torch(nn.LogSoftmax())) is nn.LogSoftmax
    ours = dp.from_torch(nn.Softmax(dim=0))
    assert type(ours) is dp.Softmax
    assert ours.dim == 0
    x = torch.randn(3, 4, 5)
    assert torch.equal(dp.from_torch(nn.Softmax())(x), nn.Softmax(0)(x))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "step"])
def test_activations_there_and_back(name):
    """Every activation but step becomes PyTorch's with its constants, and ours again."""
    ours = activation_module(name)(*ACTIVATIONS[name])
    theirs = dp.to_torch(ours)
    assert type(theirs) is getattr(nn, type(ours).__name__)
    assert not isinstance(theirs, Activation)
    z = torch.randn(4, 3)
    assert torch.equal(theirs(z), ours(z))
    back = dp.from_torch(theirs)
    assert type(back) is type(ours)
    assert torch.equal(back(z), ours(z))


def test_to_torch_needs_no_deltaprop():
    """An MLP becomes a plain Sequential whose whole pickle names torch alone, on the same Parameters."""
    ours = dp.MLP([3, 4, 2], activation="elu", output_activation="log_softmax")
    theirs = dp.to_torch(ours)
    assert [type(m) for m in (theirs, *theirs)] == [nn.Sequential, nn.Linear, nn.ELU, nn.Linear, nn.LogSoftmax]
    assert all(one is other for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert b"deltaprop" not in pickle.dumps(theirs)
    assert type(ours) is dp.MLP
    x = torch.randn(5, 3)
    assert torch.equal(ours(x), theirs(x))


def test_step_has_no_counterpart():
    """Step is refused by to_torch, by name."""
    with pytest.raises(UserError, match=r"^Step has no counterpart in torch.nn$"):
        dp.to_torch(dp.MLP([2, 3, 1], activation="step"))


# --- they are ordinary modules ---

MODELS = {
    "MLP": lambda: dp.MLP([3, 4, 4, 2], activation=["leaky_relu", dp.GELU("tanh")], output_activation="softmax"),
    "Perceptron": lambda: dp.Perceptron(3),
    **{name: lambda name=name: activation_module(name)(*ACTIVATIONS[name]) for name in ACTIVATIONS},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: _saved(m)],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies(name, copied):
    """A deep, a pickled and a saved copy compute the same and share no parameter."""
    model, x = MODELS[name](), torch.randn(5, 3)
    other = copied(model)
    assert type(other) is type(model)
    assert repr(other) == repr(model)
    assert torch.equal(other(x), model(x))
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in other.parameters()}


def _saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_parameters_are_ordinary():
    """Contiguous Parameters: .double(), flat views, parameters_to_vector and back, requires_grad_, all work."""
    model = dp.MLP([3, 4, 2])
    assert all(type(p) is nn.Parameter and p.is_contiguous() for p in model.parameters())
    vector = parameters_to_vector(model.parameters())
    assert vector.shape == (3 * 4 + 4 + 4 * 2 + 2,)
    vector_to_parameters(2 * vector, model.parameters())
    assert torch.equal(torch.cat([p.view(-1) for p in model.parameters()]), 2 * vector)
    assert model.double()(torch.randn(5, 3, dtype=torch.float64)).dtype == torch.float64
    model.requires_grad_(False)
    assert not model(torch.randn(5, 3, dtype=torch.float64)).requires_grad


def test_safetensors(tmp_path):
    """A model saved by safetensors loads into a new one, and into its PyTorch twin, bit for bit."""
    model, path = dp.MLP([3, 4, 2]), str(tmp_path / "model.safetensors")
    save_model(model, path)
    for other in (dp.MLP([3, 4, 2]), twin(3, 4, 2)):
        load_model(other, path)
        assert same_bits(model, other)

"""The modules: the same parameters, seeds and state_dicts as torch.nn, and conversion to and from torch.nn."""

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

# Every activation → arguments other than its defaults, if it has any.
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


def torch_mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return the plain PyTorch model that corresponds to MLP(sizes)."""
    layers = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Return True if two models have the same state_dict: keys and bits."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# --- Linear ---


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_torchs(bias):
    """The same seed gives the same state_dict and output bits; it is an instance of nn.Linear."""
    torch.manual_seed(3)
    dp_module = dp.Linear(5, 4, bias)
    torch.manual_seed(3)
    torch_module = nn.Linear(5, 4, bias)
    assert isinstance(dp_module, nn.Linear)
    assert same_bits(dp_module, torch_module)
    x = torch.randn(6, 5)
    assert torch.equal(dp_module(x), torch_module(x))
    assert repr(dp_module) == repr(torch_module)


def test_linear_uses_the_hand_written_backward():
    """A layer's output has the hand-written autograd Function as its grad_fn."""
    assert dp.Linear(3, 2)(torch.randn(4, 3)).grad_fn.name() == "LinearBackward"


def test_linear_has_the_given_dtype_and_device():
    """Dtype and device reach the parameters."""
    layer = dp.Linear(3, 2, device="meta", dtype=torch.float64)
    assert layer.weight.device.type == "meta"
    assert layer.bias.dtype == torch.float64


# --- activations ---


@pytest.mark.parametrize("name", core.ACTIVATIONS)
def test_every_activation_has_a_module(name):
    """Each activation has a module under its class name, which calls the op with its constants."""
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
    torch_module = getattr(nn, kind.__name__)
    if name == "gelu":
        named = {"approximate": "tanh"}
        dp_module, reference = kind(*arguments), torch_module(**named)  # keyword-only in PyTorch
    else:
        named = dict(zip(kind.constants, arguments, strict=True))
        dp_module, reference = kind(*arguments), torch_module(*arguments)
    z = torch.randn(4, 3)
    assert torch.equal(dp_module(z), reference(z))
    assert torch.equal(kind(**named)(z), reference(z))
    assert {c: getattr(dp_module, c) for c in kind.constants} == named
    if "softmax" not in name:  # by default PyTorch guesses dim, with a warning; here it is the last
        assert torch.equal(kind()(z), torch_module()(z))


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
def test_invalid_activation_arguments_are_refused(call, error, message):
    """Invalid arguments are refused by name; for a misspelt activation the nearest one is suggested."""
    with pytest.raises(error, match=message):
        call()


def test_inplace_false_is_accepted():
    """Code written for torch.nn may say inplace=False."""
    assert "inplace" not in vars(dp.ReLU(inplace=False))


def test_a_new_activation_has_a_module(monkeypatch):
    """A class added to the table can be used by name, has a module, and the module can be pickled."""

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


def test_state_dict_is_that_of_the_torch_model():
    """Keys, shapes and order are those of the plain Sequential, also with an output activation; it loads both ways."""
    dp_module, torch_module = dp.MLP([5, 4, 3, 2]), torch_mlp(5, 4, 3, 2)
    expected = {
        "0.weight": (4, 5),
        "0.bias": (4,),
        "2.weight": (3, 4),
        "2.bias": (3,),
        "4.weight": (2, 3),
        "4.bias": (2,),
    }
    assert {key: tuple(value.shape) for key, value in dp_module.state_dict().items()} == expected
    x = torch.randn(6, 5)
    torch_module.load_state_dict(dp_module.state_dict())
    assert torch.equal(dp_module(x), torch_module(x))
    other = torch_mlp(5, 4, 3, 2)
    dp_module.load_state_dict(other.state_dict())
    assert torch.equal(dp_module(x), other(x))
    assert list(dp.MLP([5, 4, 3, 2], output_activation="sigmoid").state_dict()) == list(expected)


def test_the_same_seed_gives_torchs_initial_bits():
    """With the same seed MLP and the PyTorch model have the same initial bits."""
    torch.manual_seed(7)
    dp_module = dp.MLP([5, 4, 3, 2], activation="tanh")
    torch.manual_seed(7)
    assert same_bits(dp_module, torch_mlp(5, 4, 3, 2, activation=nn.Tanh))


def test_gradients_are_those_of_the_torch_model():
    """Every ∂C/∂θ of a whole model equals PyTorch's (N = 6, float64)."""
    dp_module = dp.MLP([5, 4, 3], activation="sigmoid", dtype=torch.float64)
    torch_module = torch_mlp(5, 4, 3, activation=nn.Sigmoid).double()
    torch_module.load_state_dict(dp_module.state_dict())
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 3, (6,))
    dp.functional.cross_entropy(dp_module(x), y).backward()
    nn.functional.cross_entropy(torch_module(x), y).backward()
    for one, other in zip(dp_module.parameters(), torch_module.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("tanh", [dp.Tanh, dp.Tanh]),
        (dp.SiLU, [dp.SiLU, dp.SiLU]),
        (nn.ELU, [dp.ELU, dp.ELU]),
        (dp.LeakyReLU(0.3), [dp.LeakyReLU, dp.LeakyReLU]),
        (["relu", nn.Sigmoid()], [dp.ReLU, dp.Sigmoid]),
        (("gelu", dp.Softplus), [dp.GELU, dp.Softplus]),
        (nn.Hardtanh, [nn.Hardtanh, nn.Hardtanh]),  # has no counterpart in deltaprop: PyTorch's is used
        ("identity", [dp.Identity, dp.Identity]),
    ],
    ids=["name", "class", "torch class", "instance", "list", "tuple", "foreign", "identity"],
)
def test_activations_by_name_class_or_instance(activation, expected):
    """A name, a class, an instance, or one of these for each hidden layer; those of torch.nn are converted."""
    model = dp.MLP([2, 3, 4, 1], activation=activation)
    assert [type(module) for module in model] == [dp.Linear, expected[0], dp.Linear, expected[1], dp.Linear]


def test_an_instance_is_copied():
    """Each layer gets its own copy of the instance, with its constants."""
    instance = dp.LeakyReLU(0.3)
    model = dp.MLP([2, 3, 4, 1], activation=instance)
    assert model[1] is not instance
    assert model[1] is not model[3]
    assert model[1].negative_slope == model[3].negative_slope == 0.3


def test_an_instance_with_a_parameter_is_copied():
    """Each layer has its own parameter with the value of the given one."""
    instance = nn.PReLU(init=0.1)
    model = dp.MLP([2, 3, 4, 1], activation=instance)
    slopes = [instance.weight, model[1].weight, model[3].weight]
    assert len({slope.data_ptr() for slope in slopes}) == 3
    assert all(torch.equal(slope, instance.weight) for slope in slopes)


def test_output_activation_is_the_last_module():
    """The output activation is the last module; without hidden layers it is the only one."""
    assert [type(m) for m in dp.MLP([2, 1], output_activation="sigmoid")] == [dp.Linear, dp.Sigmoid]
    assert [type(m) for m in dp.MLP([2, 1], activation="tanh")] == [dp.Linear]


def test_without_bias_there_are_only_weights():
    """With bias=False there are only weights."""
    assert list(dp.MLP([2, 3, 1], bias=False).state_dict()) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("row", [row for row in core.ACTIVATIONS if hasattr(nn.functional, row)])
def test_an_activation_given_as_a_function(row: str):
    """A function of torch, torch.nn.functional or deltaprop.functional."""
    for module in (F, nn.functional, torch):
        if hasattr(module, row):
            model = dp.MLP([2, 3, 3, 1], [getattr(module, row), "tanh"])
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
def test_invalid_models_are_refused(arguments, message):
    """Invalid arguments are refused in one line that says what is valid."""
    with pytest.raises(UserError, match=message) as error:
        dp.MLP(**({"sizes": [3, 2, 2, 1]} | arguments))
    assert "\n" not in str(error.value)


# --- a network without nonlinearity is one layer ---


def test_identity_network_is_one_affine_map():
    """With a = z the network is one affine map: W = W2 W1, b = W2 b1 + b2."""
    model = dp.MLP([3, 4, 2], activation="identity", dtype=torch.float64)
    first, _, second = model
    weight, bias = second.weight @ first.weight, second.weight @ first.bias + second.bias
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x), x @ weight.T + bias, rtol=1e-12, atol=1e-14)


def test_identity_network_has_the_gradient_of_one_linear_map():
    """∂C/∂x is that of a linear map: the same for every x."""
    model = dp.MLP([3, 4, 1], activation="identity", dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    expected = (model[2].weight @ model[0].weight).expand(5, 3)
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-14)


def test_tanh_network_is_not_affine():
    """With tanh the map is not affine: f(x) + f(-x) is not 2 f(0), by far more than rounding."""
    model = dp.MLP([3, 4, 2], activation="tanh", init="normal", dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    assert (model(x) + model(-x) - 2 * model(torch.zeros_like(x))).abs().max() > 0.1


# --- from and to torch.nn ---


class Block(nn.Module):
    """A user's module: a nested layer, a shared activation, a parameter and a buffer."""

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
    """A model of convertible, user-defined and other modules."""
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), Block(), nn.Dropout(0.5), nn.Linear(3, 2, bias=False))


def test_from_torch_converts_at_any_depth(model):
    """Linear layers and activations are converted at any depth; other modules keep their class."""
    dp_module = dp.from_torch(model)
    assert type(dp_module) is nn.Sequential
    assert [type(m) for m in dp_module] == [dp.Linear, dp.ReLU, Block, nn.Dropout, dp.Linear]
    assert [type(m) for m in dp_module[2].inner] == [dp.Linear, nn.BatchNorm1d]
    assert type(dp_module[2].act) is dp.LeakyReLU
    assert dp_module[2].act.negative_slope == 0.2


def test_from_torch_shares_the_parameters(model):
    """The Parameter and buffer objects are the same, under the same names."""
    dp_module = dp.from_torch(model)
    for kind in ("named_parameters", "named_buffers"):
        one, other = dict(getattr(dp_module, kind)()), dict(getattr(model, kind)())
        assert list(one) == list(other)
        assert all(one[name] is other[name] for name in one)


def test_from_torch_does_not_change_the_original(model):
    """The original keeps its modules; hooks, buffers and layers added to one model do not appear in the other."""
    expected = [type(m) for m in model.modules()]
    dp_module = dp.from_torch(model)
    assert [type(m) for m in model.modules()] == expected
    assert not set(dp_module.modules()) & set(model.modules())
    called = []
    for i in (0, 2, 3):  # a converted layer, a user's module, another torch module
        dp_module[i].register_forward_hook(lambda *_: called.append("ours"))
        model[i].register_forward_hook(lambda *_: called.append("theirs"))
    x = torch.randn(4, 3)
    dp_module(x)
    assert called == ["ours"] * 3
    model(x)
    assert called == ["ours"] * 3 + ["theirs"] * 3
    dp_module[0].register_buffer("added", torch.zeros(1))
    dp_module.append(nn.ReLU())
    assert "0.added" not in model.state_dict()
    assert len(model) == 5


def test_from_torch_computes_the_same(model):
    """Outputs and gradients are those of the original, also through a user's forward."""
    dp_module = dp.from_torch(model).eval()
    model.eval()
    x = torch.randn(4, 3)
    value, expected = dp_module(x), model(x)
    torch.testing.assert_close(value, expected)
    grad_output = torch.randn_like(value)
    gradients = torch.autograd.grad(value, list(dp_module.parameters()), grad_output)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, list(model.parameters()), grad_output))


def test_shared_modules_stay_shared(model):
    """A module used twice is one module used twice in the copy."""
    dp_module = dp.from_torch(model)
    assert dp_module[2].act is dp_module[2].again
    tied = nn.Linear(3, 3)
    dp_module = dp.from_torch(nn.Sequential(tied, nn.Tanh(), tied))
    assert dp_module[0] is dp_module[2]


def test_training_mode_is_kept():
    """A module in eval mode is in eval mode in the copy."""
    layers = [nn.Linear(2, 2), nn.ReLU(), nn.Dropout()]
    for module in (*layers, nn.Sequential(*layers)):
        assert not dp.from_torch(module.eval()).training
        assert not dp.to_torch(dp.from_torch(module)).training


def test_subclasses_of_linear_are_not_converted():
    """A subclass of nn.Linear may compute something else, so it is not converted."""

    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    assert type(dp.from_torch(Scaled(2, 2))) is Scaled


@pytest.mark.filterwarnings(
    "ignore:Implicit dimension choice for softmax"
)  # PyTorch's warning for the modules that are not converted
def test_softmax_without_dim_is_not_converted():
    """Without dim PyTorch guesses softmax's axis, so it is not converted; with dim it is."""
    assert type(dp.from_torch(nn.Softmax())) is nn.Softmax
    assert type(dp.from_torch(nn.LogSoftmax())) is nn.LogSoftmax
    dp_module = dp.from_torch(nn.Softmax(dim=0))
    assert type(dp_module) is dp.Softmax
    assert dp_module.dim == 0
    x = torch.randn(3, 4, 5)
    assert torch.equal(dp.from_torch(nn.Softmax())(x), nn.Softmax(0)(x))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "step"])
def test_activations_convert_to_torch_and_back(name):
    """Every activation but step is converted to PyTorch's with its constants, and back."""
    dp_module = activation_module(name)(*ACTIVATIONS[name])
    torch_module = dp.to_torch(dp_module)
    assert type(torch_module) is getattr(nn, type(dp_module).__name__)
    assert not isinstance(torch_module, Activation)
    z = torch.randn(4, 3)
    assert torch.equal(torch_module(z), dp_module(z))
    back = dp.from_torch(torch_module)
    assert type(back) is type(dp_module)
    assert torch.equal(back(z), dp_module(z))


def test_to_torch_gives_plain_torch_modules():
    """An MLP becomes a plain Sequential of the same Parameters, whose pickle does not mention deltaprop."""
    dp_module = dp.MLP([3, 4, 2], activation="elu", output_activation="log_softmax")
    torch_module = dp.to_torch(dp_module)
    assert [type(m) for m in (torch_module, *torch_module)] == [
        nn.Sequential,
        nn.Linear,
        nn.ELU,
        nn.Linear,
        nn.LogSoftmax,
    ]
    assert all(one is other for one, other in zip(dp_module.parameters(), torch_module.parameters(), strict=True))
    assert b"deltaprop" not in pickle.dumps(torch_module)
    assert type(dp_module) is dp.MLP
    x = torch.randn(5, 3)
    assert torch.equal(dp_module(x), torch_module(x))


def test_step_has_no_counterpart_in_torch():
    """to_torch refuses Step by name."""
    with pytest.raises(UserError, match=r"^Step has no counterpart in torch.nn$"):
        dp.to_torch(dp.MLP([2, 3, 1], activation="step"))


# --- copying and saving ---

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
def test_copies_compute_the_same(name, copied):
    """A deep, pickled or saved copy computes the same and shares no parameter."""
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


def test_parameters_are_ordinary_torch_parameters():
    """Contiguous Parameters: .double(), views, parameters_to_vector and back, and requires_grad_ work."""
    model = dp.MLP([3, 4, 2])
    assert all(type(p) is nn.Parameter and p.is_contiguous() for p in model.parameters())
    vector = parameters_to_vector(model.parameters())
    assert vector.shape == (3 * 4 + 4 + 4 * 2 + 2,)
    vector_to_parameters(2 * vector, model.parameters())
    assert torch.equal(torch.cat([p.view(-1) for p in model.parameters()]), 2 * vector)
    assert model.double()(torch.randn(5, 3, dtype=torch.float64)).dtype == torch.float64
    model.requires_grad_(False)
    assert not model(torch.randn(5, 3, dtype=torch.float64)).requires_grad


def test_safetensors_can_be_loaded_into_both_models(tmp_path):
    """A model saved by safetensors loads into a new MLP and into the PyTorch model, bit for bit."""
    model, path = dp.MLP([3, 4, 2]), str(tmp_path / "model.safetensors")
    save_model(model, path)
    for other in (dp.MLP([3, 4, 2]), torch_mlp(3, 4, 2)):
        load_model(other, path)
        assert same_bits(model, other)

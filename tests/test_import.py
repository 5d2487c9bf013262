"""`import deltaprop` imports torch, and no package that only some commands or plots need."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deltaprop as dp

# Needed by some commands only, and slow to import.
HEAVY = ("sklearn", "matplotlib", "tensorboard", "tyro", "rich", "pandas", "scipy", "PIL", "safetensors", "hypothesis")


# Executed one after the other in one new interpreter, since importing torch takes a second or two.
STATEMENTS = {
    "torch": "import torch",
    "deltaprop": "import deltaprop as dp",
    "our SGD": "dp.SGD([torch.nn.Parameter(torch.ones(1))])",
    "its data": "import deltaprop.data",
    "a run": """
from pathlib import Path
from tempfile import TemporaryDirectory
from deltaprop.training import TrainConfig, train
with TemporaryDirectory() as folder:
    path = Path(folder, "run")
    train(TrainConfig(data="moons", hidden=(4,), epochs=1, log_every=0, run_dir=path, engine="explicit"))""",
    "torch's SGD": "torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])",
}


def printed_by(program: str) -> list[str]:
    """Return the lines that a program prints in a new interpreter."""
    # The same search path, so that the same source is imported wherever the tests run.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    return result.stdout.splitlines()


@pytest.fixture(scope="module")
def modules() -> dict[str, set[str]]:
    """The modules that are imported in a new interpreter after each statement and those before it."""
    report = "print('after', *sys.modules)"
    lines = printed_by("\n".join(["import sys", *(f"{each}\n{report}" for each in STATEMENTS.values())]))
    held = [{*line.split()[1:]} for line in lines if line.startswith("after ")]
    return dict(zip(STATEMENTS, held, strict=True))


@pytest.mark.parametrize("name", HEAVY)
def test_nothing_heavy(name, modules):
    """`import deltaprop` imports none of the packages that only a command needs."""
    assert importlib.util.find_spec(name) or name in ("pandas", "PIL", "scipy")  # otherwise the test proves nothing
    assert name not in {module.partition(".")[0] for module in modules["deltaprop"]}


def test_little_more_than_torch(modules):
    """Besides torch, `import deltaprop` loads only its own modules and the standard library."""
    added = modules["deltaprop"] - modules["torch"]
    foreign = {m for m in added if m.partition(".")[0] not in ({"deltaprop"} | sys.stdlib_module_names)}
    assert {m for m in foreign if not m.startswith("torch.")} == set()
    assert "deltaprop.core.linear" in added


def test_data_sets_import_no_scikit_learn(modules):
    """scikit-learn is slow to import, so only data sets and splits that need it import it."""
    assert "deltaprop.data" in modules["its data"]
    assert "sklearn" not in modules["its data"]


def test_an_optimizer_imports_no_compiler(modules):
    """torch.optim.SGD imports it when it is created, which takes a second."""
    assert "torch._dynamo" not in modules["our SGD"]
    assert "torch._dynamo" in modules["torch's SGD"]


def test_a_run_without_plots_imports_neither_compiler_nor_matplotlib(modules):
    assert not {"torch._dynamo", "matplotlib"} & modules["a run"]
    assert "torch.utils.tensorboard" in modules["a run"]


def test_a_command_excludes_imports_from_garbage_collection():
    """The objects made by imports are frozen, so that garbage collections stay fast, however a command is called."""
    program = "import gc, runpy, deltaprop.cli as cli\ncli.main = lambda words: print('frozen', gc.get_freeze_count())"
    for how in ("run_path('train.py'", "run_module('deltaprop'"):
        program += f"\ngc.unfreeze()\ntry: runpy.{how}, run_name='__main__')\nexcept SystemExit: pass"
    frozen = [int(line.split()[1]) for line in printed_by(program) if line.startswith("frozen ")]
    assert len(frozen) == 2
    assert min(frozen) > 10_000


def test_public_names():
    """Every name of __all__ exists, once, and has a docstring."""
    for name in dp.__all__:
        assert getattr(dp, name).__doc__
    assert len(set(dp.__all__)) == len(dp.__all__)
    assert {"MLP", "Linear", "SGD", "Perceptron", "from_torch", "to_torch", "functional", "UserError"} <= set(
        dp.__all__
    )


def test_dir_lists_the_public_names_alone():
    assert {*dir(dp)} == {*dp.__all__, "__version__", "nn", "testing"}


def test_typed():
    """The package says that it is typed (PEP 561)."""
    assert (Path(dp.__file__).parent / "py.typed").is_file()

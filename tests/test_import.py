"""What `import deltaprop` costs and promises: torch, and nothing that only a command or a picture needs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deltaprop as dp

# Needed by single commands alone, and slow to import.
HEAVY = ("sklearn", "matplotlib", "tensorboard", "tyro", "rich", "pandas", "scipy", "PIL", "safetensors", "hypothesis")


def modules_after(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after a statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    # The same search path, so that the same source is imported wherever the tests run.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    return set(result.stdout.split())


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules after `import deltaprop`."""
    return modules_after("import deltaprop")


@pytest.mark.parametrize("name", HEAVY)
def test_nothing_heavy(name, loaded):
    """`import deltaprop` imports none of the packages that only a command needs."""
    assert importlib.util.find_spec(name) or name in ("pandas", "PIL", "scipy")  # else the test says nothing
    assert name not in {module.partition(".")[0] for module in loaded}


def test_little_more_than_torch(loaded):
    """Beyond `import torch` it loads its own modules, and no package from outside the standard library."""
    added = loaded - modules_after("import torch")
    foreign = {m for m in added if m.partition(".")[0] not in ({"deltaprop"} | sys.stdlib_module_names)}
    assert {m for m in foreign if not m.startswith("torch.")} == set()
    assert "deltaprop.core.linear" in added


def test_an_optimizer_brings_in_no_compiler():
    """As torch.optim.SGD does, in its first breath: a second."""
    begun = "import torch, deltaprop as dp\np = [torch.nn.Parameter(torch.ones(1))]\n"
    assert "torch._dynamo" in modules_after(f"{begun}torch.optim.SGD(p)")
    assert "torch._dynamo" not in modules_after(f"{begun}dp.SGD(p)")


def test_a_run_without_pictures_brings_in_neither_compiler_nor_matplotlib(tmp_path: Path):
    settings = f"data='moons', hidden=(4,), epochs=1, log_every=0, run_dir=Path({str(tmp_path / 'run')!r})"
    begun = "from pathlib import Path\nfrom deltaprop.training import TrainConfig, train"
    loaded = modules_after(f"{begun}\ntrain(TrainConfig({settings}, engine='explicit'))")
    assert not {"torch._dynamo", "matplotlib"} & loaded
    assert "torch.utils.tensorboard" in loaded


@pytest.mark.parametrize("how", ["run_path('train.py'", "run_module('deltaprop'"])
def test_a_command_leaves_what_imports_made_to_the_end(how: str):
    """The garbage collector does not go through PyTorch again and again."""
    begun = "import gc, runpy, deltaprop.cli as cli\ncli.main = lambda words: print(f'frozen{gc.get_freeze_count()}')"
    ended = f"try: runpy.{how}, run_name='__main__')\nexcept SystemExit: pass"
    (told,) = (word for word in modules_after(f"{begun}\n{ended}") if word.startswith("frozen"))
    assert int(told.removeprefix("frozen")) > 10_000


def test_public_names():
    """Every name of __all__ exists, once, and has a docstring."""
    for name in dp.__all__:
        assert getattr(dp, name).__doc__
    assert len(set(dp.__all__)) == len(dp.__all__)
    assert {"MLP", "Linear", "SGD", "Perceptron", "from_torch", "to_torch", "functional", "UserError"} <= set(
        dp.__all__
    )


def test_typed():
    """The package says that it is typed (PEP 561)."""
    assert (Path(dp.__file__).parent / "py.typed").is_file()

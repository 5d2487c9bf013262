"""What the docs say is so: names exist, snippets run, commands parse."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import runpy
import shlex
from pathlib import Path

import pytest

from tests.data.conftest import MNIST

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TABLES = (ROOT / "docs" / "tables.md").read_text()
EQUATIONS = (ROOT / "docs" / "equations.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def rows_of_equations() -> list[tuple[str, str, str]]:
    """Return (tag, functions, tests) of each row of docs/equations.md's tables."""
    rows = []
    for line in EQUATIONS.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        if line.startswith("| ") and len(cells) == 4 and "`" in cells[2]:
            rows.append((cells[0].strip("` "), cells[2], cells[3]))
    return rows


@pytest.mark.parametrize(("tag", "functions", "tests"), rows_of_equations())
def test_each_equation_names_a_function_and_a_test_that_exist(tag: str, functions: str, tests: str):
    names, proofs = re.findall(r"`([^`]+)`", functions), re.findall(r"`([^`]+)`", tests)
    assert names
    assert proofs
    for name in names:
        module, *attributes = name.split(":")
        found: object = importlib.import_module(f"deltaprop.{module}")
        for attribute in attributes[0].split("."):
            assert hasattr(found, attribute), f"{tag}: {name}"
            found = getattr(found, attribute)
    for proof in proofs:
        file, _, test = proof.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert test.split("::")[-1] in defined, f"{tag}: {proof}"


def test_every_tag_of_the_book_is_listed():
    tags = {tag for tag, _, _ in rows_of_equations()}
    assert {"FWD", "BP1", "BP2", "BP3", "BP4", "SGD"} <= tags


def test_every_row_of_the_table_of_activations_is_listed():
    from deltaprop.core import ACTIVATIONS

    assert set(ACTIVATIONS) <= {tag for tag, _, _ in rows_of_equations()}


@pytest.mark.parametrize(
    "number", range(5), ids=["by autograd", "without a tape", "in two parts", "a backward pass checked", "a trace"]
)
def test_the_readmes_examples_run(number: int, capsys: pytest.CaptureFixture[str]):
    code = blocks(README, "python")[number]
    exec(compile(code, "README.md", "exec"), {})
    printed = re.findall(r"print\(.*\)  # (.*)", code)
    for words in printed:
        assert all(part in capsys.readouterr().out for part in words.split("…")[1:])


def test_the_readmes_weights_load_in_plain_pytorch(tmp_path: Path):
    from deltaprop.training import TrainConfig, train

    train(TrainConfig(epochs=1, log_every=0, run_dir=tmp_path / "run"))
    code = blocks(README, "python")[7].replace("runs/<run>", str(tmp_path / "run"))
    exec(compile(code, "README.md", "exec"), {})


@pytest.fixture(scope="module")
def penguins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Run the README's three commands on a table; return the folder, and what each command printed."""
    from deltaprop.cli import main

    folder = tmp_path_factory.mktemp("penguins")
    (folder / "examples").symlink_to(ROOT / "examples")
    section = README.split("## Your own table in three commands")[1]
    printed = {}
    with contextlib.chdir(folder):
        for line in blocks(section, "sh")[0].splitlines():
            # Less the pictures, which take longer than the run; looking changes no bit (tests/training/test_loop.py).
            words = shlex.split(line.replace("python train.py", "deltaprop train --log-every 0"))
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                assert main(words[1:]) == 0, line
            printed[words[1]] = out.getvalue()
    return folder, printed


def test_the_readmes_table_is_read_as_it_says(penguins: tuple[Path, dict[str, str]]):
    """Line by line, but for how many are right on another processor."""
    _, printed = penguins
    for line in blocks(README.split("## Your own table in three commands")[1], "text")[0].splitlines():
        assert line in printed["train"].splitlines() or line.startswith(("  …", "test ")), line


def test_the_readmes_answers_are_those_of_the_command(penguins: tuple[Path, dict[str, str]]):
    folder, _ = penguins
    shown = blocks(README.split("## Your own table in three commands")[1], "text")[1].splitlines()
    found = (folder / "answers.csv").read_text().splitlines()
    assert found[0] == shown[0]
    assert found[1].split(",")[:2] == shown[1].split(",")[:2]
    assert [float(v) for v in found[1].split(",")[2:]] == pytest.approx(
        [float(v) for v in shown[1].split(",")[2:]], abs=1e-4
    )
    assert len(found) == 1 + 344  # rows of the file


def test_the_readmes_refusal_is_that_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from deltaprop.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert main(["train", "--data", "examples/penguins.csv", "--target", "species"]) == 2
    shown = blocks(README.split("## Your own table in three commands")[1], "text")[2]
    assert capsys.readouterr().err == shown


def test_the_readmes_commands_on_a_trained_model_run(penguins: tuple[Path, dict[str, str]], capsys):
    """All of the second block but pip and the pipe, which is tried in tests/cli/test_predict.py."""
    from deltaprop.cli import main

    folder, _ = penguins
    with contextlib.chdir(folder):
        for line in blocks(README.split("## Your own table in three commands")[1], "sh")[1].splitlines():
            if line.startswith("deltaprop"):
                assert main(shlex.split(line, comments=True)[1:]) == 0, line
    assert "parity: at most" in capsys.readouterr().out


@pytest.mark.parametrize("number", [5, 6], ids=["a model loaded", "in scikit-learn's words"])
def test_the_readmes_examples_of_use_run(number: int, penguins: tuple[Path, dict[str, str]], capsys):
    folder, _ = penguins
    code = blocks(README, "python")[number]
    with contextlib.chdir(folder):
        exec(compile(code, "README.md", "exec"), {})
    out = capsys.readouterr().out
    for words in re.findall(r"print\(.*\) +# … (.*)", code):
        assert words in out


@pytest.fixture(scope="module")
def exports(penguins: tuple[Path, dict[str, str]]) -> tuple[Path, str]:
    """Run the commands of docs/tables.md that export the model; return the folder, and what they printed."""
    from deltaprop.cli import main

    folder, out = penguins[0], io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        for line in blocks(TABLES.split("## In other hands")[1], "sh")[0].splitlines():
            assert main(shlex.split(line)[1:]) == 0, line
    return folder, out.getvalue()


@pytest.mark.parametrize("number", range(3), ids=["onnx", "torch-export", "state-dict"])
def test_exports_are_used_as_the_docs_say(number: int, exports: tuple[Path, str]):
    """Each block as it stands, on rows of which 11 have a cell that is missing, beside the model itself."""
    import deltaprop as dp

    folder, printed = exports
    code, found = blocks(TABLES.split("## In other hands")[1], "python")[number], {}
    with contextlib.chdir(folder):
        exec(compile(code, "docs/tables.md", "exec"), found)
        model = dp.load("runs/penguins")
        own, probabilities = model.predict("examples/penguins.csv"), model.predict_proba("examples/penguins.csv")
    theirs = found["probabilities"]
    theirs = theirs if number == 0 else theirs.detach().numpy()
    assert abs(theirs - probabilities).max() < 1e-5  # of float32, in another order of sums
    assert [*found["label"]] == own.tolist()
    if number == 2:  # the net of the block is the one that export prints, but for bias=True
        layers = re.findall(r"nn\.Sequential\((.*)\)  #", code)[0].replace("nn.", "")
        assert layers in printed.replace("in_features=", "").replace("out_features=", "").replace(", bias=True", "")


def test_the_readmes_transcript_is_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Line by line, but for times, the run's name, and digits that another processor's rounding may change."""
    from deltaprop.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 0
    shown = capsys.readouterr().out
    for line in blocks(README, "text")[0].splitlines():
        if line.split()[:1] == ["1"]:
            losses = [float(word) for word in line.split()[1:3]]
            found = next(row for row in shown.splitlines() if row.split()[:1] == ["1"])
            assert [float(word) for word in found.split()[1:3]] == pytest.approx(losses, rel=0.05)
        elif not line.startswith(("test", "best", "time", "run", "look", "     30", "      …")):
            assert line in shown.splitlines()


def test_the_readmes_worked_example_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]):
    """Line by line; the last but for its digits of rounding."""
    from deltaprop.cli import main

    assert main(["trace", "--sizes", "2", "3", "1", "--output-activation", "sigmoid"]) == 0
    shown = capsys.readouterr().out.splitlines()
    (page,) = [block for block in blocks(README, "text") if block.startswith("FWD")]
    for line in page.splitlines():
        if line != "…" and not line.startswith("ok"):
            assert line in shown, line
    assert "ok: PyTorch's autograd has the same numbers " in " ".join(shown)


def vanishing(words: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Hold what ``depths`` prints to the README's page of it; return the lines of that page that it printed.

    Before training to the digit; after it as near as the rounding of another processor leaves it.
    """
    from deltaprop.cli import main

    assert main(["depths", *words]) == 0
    shown = capsys.readouterr().out.splitlines()
    (page,) = [block for block in blocks(README, "text") if block.startswith("sigmoid, torch")]
    found = {line for line in page.splitlines() if line in shown}
    for line in page.splitlines():
        if "after" in line:
            likely = [other for other in shown if other.split()[:1] == ["after"] and len(other) == len(line)]
            numbers = [float(word) for word in line.split()[1:6]]
            if any([float(w) for w in other.split()[1:6]] == pytest.approx(numbers, rel=0.1) for other in likely):
                found.add(line)
    return found


def test_the_readmes_vanishing_gradients_are_what_the_command_prints(capsys: pytest.CaptureFixture[str]):
    """The nets that the page shows; each is what it is whatever was trained before it."""
    (page,) = [block for block in blocks(README, "text") if block.startswith("sigmoid, torch")]
    found = vanishing(["--depths", "4", "--arms", "sigmoid:torch"], capsys)
    assert sum("after" in line for line in found) == 1
    # What the page has of these two is before training.
    found |= vanishing(["--depths", "4", "--arms", "relu:kaiming", "relu:normal", "--epochs", "1"], capsys)
    assert found == {*page.splitlines()} - {"…"}


@pytest.mark.slow
def test_so_is_all_of_the_page(capsys: pytest.CaptureFixture[str]):
    (page,) = [block for block in blocks(README, "text") if block.startswith("sigmoid, torch")]
    assert vanishing([], capsys) == {*page.splitlines()} - {"…"}


def test_the_readmes_activation_is_right():
    """Its class, as printed, against PyTorch's own derivative of its forward, at random z in float64."""
    import torch

    from deltaprop.core import Elementwise, primitive

    namespace = {"torch": torch, "Tensor": torch.Tensor, "Elementwise": Elementwise}
    exec(compile("from __future__ import annotations\n" + blocks(README, "python")[8], "README.md", "exec"), namespace)
    mish = primitive(namespace["Mish"])
    assert torch.autograd.gradcheck(mish, torch.randn(5, dtype=torch.float64, requires_grad=True))


def test_the_readme_names_every_check():
    from deltaprop.gradcheck.check import CHECKS

    table = README.split("| asked | finds |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == set(CHECKS)
    assert f"asks {len(CHECKS)} questions" in README


@pytest.mark.parametrize("line", re.findall(r"python train\.py (--(?!activation mish|resume)[^`\n]*)", README))
def test_the_readmes_commands_parse(line: str):
    from deltaprop.cli.train import parse

    parse(shlex.split(line, comments=True))


RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()


GOING_ON = {
    line.partition("#")[0].strip() for line in re.findall(r"python train\.py (--resume [^`\n]*)", README + RELIABILITY)
}


@pytest.mark.parametrize("line", sorted(GOING_ON))
def test_the_commands_that_go_on_do(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a run of two epochs of moons, under the name that they have for it."""
    from deltaprop.cli import main

    monkeypatch.chdir(tmp_path)
    small = ["--data", "moons", "--hidden", "4", "--epochs", "2", "--log-every", "0", "--batch-size", "256"]
    assert main(["train", *small, "--run-dir", "runs/it"]) == 0
    words = [word.replace("runs/<run>", "runs/it") for word in shlex.split(line)]
    assert main(["train", *words, *(small if "auto" in words else [])]) == 0


def test_the_pictures_lines_of_code_stand_in_the_source():
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    pictures = runpy.run_path(str(ROOT / "docs" / "make_pictures.py"))
    drawn = [code for _, code, _ in pictures["LINES"]]
    assert len(drawn) == 6
    for code in drawn:
        assert code in source, code


@pytest.mark.slow
def test_the_pictures_can_be_drawn(tmp_path: Path):
    drawing = runpy.run_path(str(ROOT / "docs" / "make_pictures.py"))
    drawing["overview"](tmp_path / "overview.png")
    if MNIST.is_dir():
        drawing["deformed"](tmp_path / "deformed.png", str(MNIST))
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "overview.png").exists()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")], ids=str)
def test_links_within_the_project_lead_somewhere(page: Path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target

"""The docs are right: names exist, code blocks run, commands run and print what is shown."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import io
import re
import runpy
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest

from deltaprop.core import ACTIVATIONS
from deltaprop.core.emit import CPP, emit_definition
from tests.data.conftest import MNIST, encode_idx

ROOT = Path(__file__).parents[1]
# The pages whose every block is run, by this file or by the tests in `ELSEWHERE`.
PAGES = {
    "README.md": (ROOT / "README.md").read_text(),
    **{
        name: (ROOT / "docs" / name).read_text()
        for name in (
            "distributed.md",
            "engines.md",
            "extending.md",
            "gradcheck.md",
            "performance.md",
            "sklearn.md",
            "tables.md",
            "trace.md",
            "training.md",
        )
    },
}
README = PAGES["README.md"]
EQUATIONS = (ROOT / "docs" / "equations.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()

# The text blocks, which show the output of a command, by the beginning of the block. Each has a test below.
OUTPUTS = {
    "README.md": ["data    digits"],
    "tables.md": ["data    penguins", '"island"', "error:", "seen "],
    "trace.md": ["FWD", "sigmoid, torch"],
}

# Commands that are not run by this file, and the tests or scripts that run them.
ELSEWHERE = {
    "pip install -e . && python train.py": ".ci/run",
    'pip install -e ".[test]" && pytest -n 2': ".ci/run",
    "torchrun --standalone --nproc-per-node 2 train.py --data moons --run-dir runs/moons": (
        "tests/distributed/test_torchrun.py"
    ),
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint host0:29500 --max-restarts 3 train.py "
    "--data parts/ --target price --engine explicit --run-dir runs/parts --resume auto": (
        "tests/distributed/test_hosts.py"
    ),
    'pip install -e ".[onnx]"': ".ci/run",  # a part of .[dev]
    "python -m examples.nielsen overfitting --data path/to/mnist": "tests/examples/test_nielsen.py",
    "cat examples/penguins.csv | deltaprop predict runs/penguins --data - --out - > answers.csv": (
        "tests/cli/test_predict.py"
    ),
    "deltaprop gradcheck": "tests/cli/test_gradcheck.py",
    "tensorboard --logdir runs": "tests/training/report",  # TensorBoard itself, with events that are tested there
}


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def output(page: str, beginning: str) -> str:
    """Return the text block of a page that starts with ``beginning``."""
    (block,) = [block for block in blocks(PAGES[page], "text") if block.startswith(beginning)]
    return block


def command_lines(text: str) -> list[str]:
    """Return the lines of the shell blocks, without their comments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in lines]


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


def test_every_activation_and_loss_is_listed():
    from deltaprop.core import ACTIVATIONS, LOSSES

    assert {*ACTIVATIONS, *LOSSES} <= {tag for tag, _, _ in rows_of_equations()}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_test(page: str):
    """Python and shell blocks by their language, outputs by their beginning."""
    assert set(re.findall(r"^```(\w*)$", PAGES[page], flags=re.MULTILINE)) - {""} <= {"python", "sh", "text", "cpp"}
    shown = blocks(PAGES[page], "text")
    assert len(shown) == len(OUTPUTS.get(page, []))
    for beginning in OUTPUTS.get(page, []):
        assert output(page, beginning)


def test_commands_run_elsewhere_are_on_a_page_and_have_a_test():
    written = {line for text in PAGES.values() for line in command_lines(text)}
    for line, place in ELSEWHERE.items():
        assert line in written
        assert (ROOT / place).exists(), place


@pytest.fixture(scope="module")
def penguins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Run the README's three commands on a table; return the folder, and what each command printed."""
    from deltaprop.cli import main

    folder = tmp_path_factory.mktemp("penguins")
    (folder / "examples").symlink_to(ROOT / "examples")
    section = README.split("### Your own table in three commands")[1]
    printed = {}
    with contextlib.chdir(folder):
        for line in blocks(section, "sh")[0].splitlines():
            # Without plots, which take longer than the run; logging changes no bit (tests/training/test_loop.py).
            words = shlex.split(line.replace("python train.py", "deltaprop train --log-every 0"))
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                assert main(words[1:]) == 0, line
            printed[words[1]] = out.getvalue()
    return folder, printed


@pytest.fixture(scope="module")
def workspace(penguins: tuple[Path, dict[str, str]]) -> Path:
    """Return a folder with all files that the blocks use: two runs, a data set of IDX files, and a user's modules."""
    from deltaprop.training import TrainConfig, train

    folder, _ = penguins
    train(TrainConfig(epochs=1, log_every=0, run_dir=folder / "runs" / "digits"))
    mnist = folder / "path" / "to" / "mnist"
    mnist.mkdir(parents=True)
    labels = np.arange(200, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        images = np.random.default_rng(0).integers(256, size=(200, 28, 28), dtype=np.uint8)
        (mnist / f"{part}-images-idx3-ubyte").write_bytes(encode_idx(images))
        (mnist / f"{part}-labels-idx1-ubyte").write_bytes(encode_idx(labels))
    scale = blocks(PAGES["gradcheck.md"], "python")[0].split("report =")[0]
    scale = scale.replace(".mean(0)", ".sum_to_size(w.shape)")  # as its comment says
    example = "def example_inputs():\n    return torch.randn(4, 3), torch.randn(3)\n"
    (folder / "kernels.py").write_text(scale + example)
    net = "import torch\n\nmodel = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))\n"
    example = "\n\ndef example_inputs():\n    return torch.randn(8, 4), torch.randint(2, (8,))\n"
    (folder / "net.py").write_text(net + example)
    return folder


def python_blocks() -> list[tuple[str, int]]:
    """Return (page, number) of the blocks that run by themselves; the others have separate tests below."""
    whole = {**PAGES, "extending.md": "", "tables.md": PAGES["tables.md"].split("## Exported models")[0]}
    return [(page, number) for page, text in whole.items() for number in range(len(blocks(text, "python")))]


@pytest.mark.parametrize(("page", "number"), python_blocks(), ids=str)
def test_the_python_blocks_run(page: str, number: int, workspace: Path, capsys: pytest.CaptureFixture[str]):
    """Each prints what the comment after its print shows."""
    code = blocks(PAGES[page], "python")[number].replace("<run>", "digits")
    with contextlib.chdir(workspace):
        exec(compile(code, page, "exec"), {})
    printed = capsys.readouterr().out
    for words in re.findall(r"print\(.*\) +# (.*….*)", code):
        for part in words.split("…"):
            assert part.strip() in printed


def test_the_python_blocks_show_what_they_print():
    """The test above has something to compare."""
    every = "".join(block for text in PAGES.values() for block in blocks(text, "python"))
    assert len(re.findall(r"print\(.*\) +# (.*….*)", every)) >= 5


def shell_lines() -> list[tuple[str, str]]:
    """Return (page, command) of the commands that run in the folder of `workspace`."""
    three = blocks(README.split("### Your own table in three commands")[1], "sh")[0].splitlines()  # by `penguins`
    exports = blocks(PAGES["tables.md"].split("## Exported models")[1], "sh")[0].splitlines()  # by `exports`
    depths = ["deltaprop depths --picture depths.png"]  # tested with its output
    skipped = {*ELSEWHERE, *three, *exports, *depths}
    return [(page, line) for page, text in PAGES.items() for line in command_lines(text) if line not in skipped]


@pytest.mark.parametrize(("page", "line"), shell_lines(), ids=str)
def test_the_commands_run(page: str, line: str, workspace: Path):
    """Unchanged, except that a training run has one epoch and no plots for TensorBoard."""
    from deltaprop.cli import main

    words = shlex.split(line.replace("python train.py", "deltaprop train").replace("<run>", "digits"))
    assert words[0] == "deltaprop"
    shorter = ["--epochs", "1", "--log-every", "0"] if words[1] == "train" else []
    out = io.StringIO()
    with contextlib.chdir(workspace), contextlib.redirect_stdout(out):
        assert main([*words[1:], *shorter]) == 0
    if words[1] == "export":
        assert "parity: at most" in out.getvalue()


@pytest.mark.parametrize(
    "line",
    [
        words
        for page in PAGES.values()
        for words in re.findall(r"`python train\.py (--(?!activation mish|help)[^`\n]*)`", page)
    ],
)
def test_the_commands_in_the_text_parse(line: str):
    from deltaprop.cli.train import parse_flags

    parse_flags(shlex.split(line))


def test_every_flag_is_listed_with_its_default():
    from deltaprop.training import TrainConfig

    rows = [row.split("|")[1:3] for row in PAGES["training.md"].splitlines() if row.startswith("| `--")]
    listed = {flag.strip(" `-"): default.strip(" `") for flag, default in rows}
    defaults, on_off = {}, {"False": "off", "True": "on", "None": ""}
    for field in dataclasses.fields(TrainConfig):
        value = on_off.get(str(field.default), field.default)
        words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        defaults[field.name.replace("_", "-")] = words
    assert listed == {**defaults, "resume": "", "override": ""}


def test_the_training_output_matches_the_page(penguins: tuple[Path, dict[str, str]]):
    """Line by line, except for the test accuracy, which depends on the processor."""
    _, printed = penguins
    for line in output("tables.md", "data ").splitlines():
        assert line in printed["train"].splitlines() or line.startswith(("  …", "test ")), line


def test_the_evaluation_on_the_training_table_matches_the_page(penguins: tuple[Path, dict[str, str]]):
    """The counts; the metrics depend on the processor. The others are the rows of the test part."""
    from deltaprop.cli import main

    out = io.StringIO()
    with contextlib.chdir(penguins[0]), contextlib.redirect_stdout(out):
        assert main(["evaluate", "runs/penguins", "--data", "examples/penguins.csv"]) == 0
    printed, shown = out.getvalue().splitlines(), output("tables.md", "seen ").splitlines()
    assert printed[1:4] == shown[:3]
    for line, other in zip(printed[4:6], shown[3:5], strict=True):
        assert re.sub(r"[\d.]+", "#", line) == re.sub(r"[\d.]+", "#", other)
    test = next(line for line in output("tables.md", "data ").splitlines() if line.startswith("test "))
    assert re.findall(r"\d+ of 69", test) == re.findall(r"\d+ of 69", shown[4])


def test_the_predictions_match_the_page(penguins: tuple[Path, dict[str, str]]):
    folder, _ = penguins
    shown = output("tables.md", '"island"').splitlines()
    lines = (folder / "answers.csv").read_text().splitlines()
    assert lines[0] == shown[0]
    assert lines[1].split(",")[:2] == shown[1].split(",")[:2]
    assert [float(v) for v in lines[1].split(",")[2:]] == pytest.approx(
        [float(v) for v in shown[1].split(",")[2:]], abs=1e-4
    )
    assert len(lines) == 1 + 344  # rows of the file


def test_the_error_message_matches_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from deltaprop.cli import main

    monkeypatch.chdir(tmp_path)
    rows = [f"{'x' if i == 7 else i % 5},{i * i % 11},{'yes' if i % 3 else 'no'}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    shown = output("tables.md", "error:")
    assert main(["train", "--data", "t.csv", "--epochs", "1"]) == 2
    assert capsys.readouterr().err == shown
    command = shlex.split(shown[shown.index("deltaprop train") :])
    assert main([*command[1:], "--log-every", "0"]) == 0


@pytest.fixture(scope="module")
def exports(penguins: tuple[Path, dict[str, str]]) -> tuple[Path, str]:
    """Run the export commands of docs/tables.md; return the folder, and what they printed."""
    from deltaprop.cli import main

    folder, out = penguins[0], io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        for line in blocks(PAGES["tables.md"].split("## Exported models")[1], "sh")[0].splitlines():
            assert main(shlex.split(line)[1:]) == 0, line
    return folder, out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3), ids=["onnx", "torch-export", "state-dict"])
def test_exports_work_as_documented(number: int, exports: tuple[Path, str]):
    """Each block, unchanged, gives the model's own predictions; 11 of the rows have missing cells."""
    import deltaprop as dp

    folder, printed = exports
    code, namespace = blocks(PAGES["tables.md"].split("## Exported models")[1], "python")[number], {}
    with contextlib.chdir(folder):
        exec(compile(code, "docs/tables.md", "exec"), namespace)
        model = dp.load("runs/penguins")
        labels, probabilities = model.predict("examples/penguins.csv"), model.predict_proba("examples/penguins.csv")
    exported = namespace["probabilities"]
    exported = exported if number == 0 else exported.detach().numpy()
    assert abs(exported - probabilities).max() < 1e-5  # float32 rounding: sums have another order
    assert [*namespace["label"]] == labels.tolist()
    if number == 2:  # the network in the block is the one that export prints, except for bias=True
        layers = re.findall(r"nn\.Sequential\((.*)\)  #", code)[0].replace("nn.", "")
        assert layers in printed.replace("in_features=", "").replace("out_features=", "").replace(", bias=True", "")


def test_the_first_run_prints_what_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Line by line, except for times and digits that depend on the processor's rounding."""
    from deltaprop.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for line in output("README.md", "data ").splitlines():
        if line.split()[:1] == ["30"]:  # the last epoch: nearly all of the validation rows are right
            (row,) = [other for other in printed if other.split()[:1] == ["30"]]
            assert float(row.split()[3]) == pytest.approx(float(line.split()[3]), abs=2)
            assert len(row.split()) == len(line.split())
        elif line.startswith("test"):
            (row,) = [other for other in printed if other.startswith("test")]
            shown, right = (int(re.findall(r"\((\d+) of 359\)", text)[0]) for text in (line, row))
            assert abs(shown - right) <= 4
        elif line != "  …":
            assert line in printed, line


def test_the_worked_example_matches_the_command(capsys: pytest.CaptureFixture[str]):
    """Line by line; the last line except for its rounding errors."""
    from deltaprop.cli import main

    assert main(["trace", "--sizes", "2", "3", "1", "--output-activation", "sigmoid"]) == 0
    shown = capsys.readouterr().out.splitlines()
    for line in output("trace.md", "FWD").splitlines():
        if line != "…" and not line.startswith("ok"):
            assert line in shown, line
    assert "ok: PyTorch's autograd agrees " in " ".join(shown)


def matching_lines(words: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Run ``depths``; return the lines of docs/trace.md that it printed.

    Lines before training must be equal; lines after it within 10 %, since rounding depends on the processor.
    """
    from deltaprop.cli import main

    assert main(["depths", *words]) == 0
    shown = capsys.readouterr().out.splitlines()
    page = output("trace.md", "sigmoid, torch")
    found = {line for line in page.splitlines() if line in shown}
    for line in page.splitlines():
        if "after" in line:
            candidates = [other for other in shown if other.split()[:1] == ["after"] and len(other) == len(line)]
            numbers = [float(word) for word in line.split()[1:6]]
            if any([float(w) for w in other.split()[1:6]] == pytest.approx(numbers, rel=0.1) for other in candidates):
                found.add(line)
    return found


@pytest.mark.slow
def test_the_vanishing_gradients_match_the_command(capsys: pytest.CaptureFixture[str]):
    """Some networks of the page; the results do not depend on the others."""
    page = output("trace.md", "sigmoid, torch")
    found = matching_lines(["--depths", "4", "--arms", "sigmoid:torch"], capsys)
    assert sum("after" in line for line in found) == 1
    # For these two networks the page shows only the norms before training.
    found |= matching_lines(["--depths", "4", "--arms", "relu:kaiming", "relu:normal", "--epochs", "1"], capsys)
    assert found == {*page.splitlines()} - {"…"}


@pytest.mark.slow
def test_all_vanishing_gradients_match_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (line,) = [line for line in command_lines(PAGES["trace.md"]) if "depths" in line]
    with contextlib.chdir(tmp_path):
        found = matching_lines(shlex.split(line)[2:], capsys)
    assert (tmp_path / "depths.png").exists()
    assert found == {*output("trace.md", "sigmoid, torch").splitlines()} - {"…"}


def test_the_example_activation_passes_gradcheck():
    """The class as printed, against finite differences at random z in float64."""
    import torch

    from deltaprop.core import Elementwise, primitive

    namespace = {"torch": torch, "Tensor": torch.Tensor, "Elementwise": Elementwise}
    (code,) = blocks(PAGES["extending.md"], "python")
    exec(compile("from __future__ import annotations\n" + code, "extending.md", "exec"), namespace)
    mish = primitive(namespace["Mish"])
    assert torch.autograd.gradcheck(mish, torch.randn(5, dtype=torch.float64, requires_grad=True))


def test_the_docs_name_every_check():
    from deltaprop.gradcheck.check import CHECKS

    table = PAGES["gradcheck.md"].split("| check | what it finds |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(CHECKS)
    for page in ("README.md", "gradcheck.md"):
        assert f"akes {len(CHECKS)} checks" in PAGES[page]


def test_the_quoted_equation_lines_are_in_the_source():
    table = EQUATIONS.split("| tag | code | file |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| [A-Z0-9, ]+ \| `(.*)` \| `(.*)` \|$", table, flags=re.MULTILINE)
    assert len(rows) == 6
    for code, file in rows:
        assert code in (ROOT / "src" / "deltaprop" / "core" / file).read_text(), code


def test_the_cpp_blocks_are_what_is_compiled():
    """What is emitted for sigmoid, and the lines of the template, but for their indentation."""
    emitted, written = blocks(PAGES["performance.md"], "cpp")
    assert emitted.strip() == emit_definition(ACTIVATIONS["sigmoid"], "sigmoid", CPP)
    template = (ROOT / "src" / "deltaprop" / "compiled" / "epoch.cpp").read_text()
    assert textwrap.indent(written.strip(), " " * 8) in template


def test_the_readme_is_short():
    assert len(README.encode()) <= 12 * 1024


RESUME_COMMANDS = {
    line.partition("#")[0].strip() for line in re.findall(r"python train\.py (--resume [^`\n]*)", RELIABILITY)
}


@pytest.mark.parametrize("line", sorted(RESUME_COMMANDS))
def test_the_resume_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a run of two epochs on moons, in the folder they name."""
    from deltaprop.cli import main

    monkeypatch.chdir(tmp_path)
    small = ["--data", "moons", "--hidden", "4", "--epochs", "2", "--log-every", "0", "--batch-size", "256"]
    assert main(["train", *small, "--run-dir", "runs/it"]) == 0
    words = [word.replace("runs/<run>", "runs/it") for word in shlex.split(line)]
    assert main(["train", *words, *(small if "auto" in words else [])]) == 0


def test_the_code_in_the_pictures_is_in_the_source():
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
def test_internal_links_have_a_target(page: Path):
    """Each link leads to an existing file and, after #, to an existing heading, named by GitHub's rule."""
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE) if heading else []
        names = [re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for words in headings]
        assert not heading or heading in names, f"{target}#{heading}"


def test_the_readme_links_to_every_page():
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, page.name

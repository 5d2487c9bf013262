"""``deltaprop evaluate``: metrics on the terminal, as JSON and as a plot."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import deltaprop as dp
from deltaprop.cli import main
from deltaprop.inference.evaluation import evaluate_file
from deltaprop.inference.plots import evaluation_figure
from deltaprop.training.seen_rows import read_training_rows
from tests.inference.conftest import KINDS, REGRESSION_KINDS, TABLES, Runs, first, inputs_of, write_csv


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One trained run of each kind, on demand."""
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def figures(run: Path, *args: str) -> dict[str, Any]:
    """Return the JSON that the command writes."""
    assert main(["evaluate", str(run), *args, "--json", "o.json"]) == 0
    return json.loads(Path("o.json").read_text(), parse_constant=pytest.fail)  # NaN is not valid JSON


QUICK = ("mixed", "two", "logit", "images", "mse", "dates")  # the others add little


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_the_runs_own_test_rows_give_the_metrics_of_training(runs: Runs, kind: str):
    report, metrics = figures(runs[kind].folder), runs[kind].metrics
    assert report["rows"] == runs[kind].saved["resolved"]["rows"]["test"]
    assert report["loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)
    if kind in REGRESSION_KINDS:
        assert report["rmse"] == pytest.approx(metrics["test_rmse"], rel=1e-5)
    else:
        assert report["accuracy"] == metrics["test_accuracy"]
    assert report["data"] == "its own test part"


@pytest.mark.parametrize("settings", [{"class_weight": "balanced"}, {"loss": "binary-cross-entropy"}], ids=str)
def test_the_loss_is_that_of_training(runs: Runs, settings: dict[str, Any]):
    """One class is three times as frequent as the other."""
    a = TABLES["numbers"]["a"]
    path = write_csv(Path("t.csv"), {"a": a, "y": ["p" if at % 4 else "q" for at in range(len(a))]})
    run = runs.train("-".join(map(str, settings.values())), path.resolve(), **settings)
    assert figures(run.folder)["loss"] == pytest.approx(run.metrics["test_loss"], rel=1e-5)


def test_metrics_of_a_file_as_json(runs: Runs):
    run = runs["mixed"]
    report = figures(run.folder, "--data", run.data)
    expected = evaluate_file(dp.load(run.folder), run.data, known=read_training_rows(run.folder))
    assert report == {"run": str(run.folder), "weights": "final", "data": run.data, **expected.to_json()}
    right = sum(row[at] for at, row in enumerate(report["confusion"]))
    assert report["accuracy"] == pytest.approx(right / report["rows"], abs=1e-12)
    assert [sum(row) for row in report["confusion"]] == [
        report["classes"][name]["rows"] for name in ("hi", "lo", "mid")
    ]


def test_classification_metrics_on_the_terminal(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The metrics of 300 rows in two classes, none of them a row of training: each is moved by 1e-3."""
    monkeypatch.setenv("COLUMNS", "100")
    run, columns = runs["numbers"], inputs_of("numbers")
    data = str(write_csv(Path("t.csv"), {**columns, "a": [a + 1e-3 for a in columns["a"]]}))
    report = evaluate_file(dp.load(run.folder), data)
    assert report.confusion is not None
    assert main(["evaluate", str(run.folder), "--data", data]) == 0
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    right = int(report.confusion.trace())
    assert err == ""
    assert lines[0] == f"{run.folder} (final weights) on {data}"
    assert lines[1:3] == ["rows 300", f"loss {report.loss:.4g} (cross-entropy)"]
    assert lines[3] == f"accuracy {right / 3:.2f} % ({right} of 300)"
    assert f"ROC AUC {report.figures['roc_auc']:.4f}" in lines
    assert "class precision recall f1 rows" in lines
    assert any(line.startswith("true↓ predicted→") for line in lines)


def test_regression_metrics_on_the_terminal(runs: Runs, capsys: pytest.CaptureFixture[str]):
    run = runs["two"]
    report = evaluate_file(dp.load(run.folder), run.data, known=read_training_rows(run.folder))
    assert report.others is not None
    assert main(["evaluate", str(run.folder), "--data", run.data]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"R² {report.figures['r2']:.4g} {report.others.figures['r2']:.4g}" in lines
    assert not any(line.startswith(("rmse", "mae")) for line in lines)  # not over u and v together: their units differ
    v = report.by_class["v"]
    assert f"v {v['rmse']:.4g} {v['mae']:.4g} {v['r2']:.4g}" in lines


def test_undefined_metrics_are_null_in_json_and_not_printed_as_nan(runs: Runs, capsys: pytest.CaptureFixture[str]):
    """All rows are of one class."""
    columns = {**first(inputs_of("mixed"), 3), "y": ["hi"] * 3}
    path = write_csv(Path("t.csv"), columns)
    report = figures(runs["mixed"].folder, "--data", str(path))
    assert report["classes"]["mid"]["recall"] is None
    assert "nan" not in capsys.readouterr().out.lower()
    two = write_csv(Path("u.csv"), {**first(inputs_of("numbers"), 3), "y": ["yes"] * 3})
    assert figures(runs["numbers"].folder, "--data", str(two))["roc_auc"] is None
    assert "nan" not in capsys.readouterr().out.lower()


def test_markup_in_names_is_printed_unchanged(runs: Runs, capsys: pytest.CaptureFixture[str]):
    a = TABLES["numbers"]["a"]
    path = write_csv(Path("t.csv"), {"a": a, "y": ["[red]" if x > 0 else "[/x]" for x in a]})
    run = runs.train("markup", path.resolve())
    assert main(["evaluate", str(run.folder), "--data", "t.csv", "--picture", "o.png"]) == 0
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "[/x]" in out


def test_dropped_rows_and_unseen_categories_are_reported(runs: Runs, capsys: pytest.CaptureFixture[str]):
    columns = first(inputs_of("mixed"), 3)
    columns["city"][0] = "Bonn"
    write_csv(Path("t.csv"), columns)
    assert main(["evaluate", str(runs["mixed"].folder), "--data", "t.csv"]) == 0
    message = "warning: t.csv: column 'city' has a name not seen in training, such as 'Bonn'\n"
    assert capsys.readouterr().err == message
    run = runs.train("drops", write_csv(Path("u.csv"), TABLES["filled"]).resolve(), missing="drop")
    assert main(["evaluate", str(run.folder), "--data", "u.csv"]) == 0
    gaps = sum(cell is None for cell in TABLES["filled"]["a"])
    assert f"left out  {gaps} rows because of missing cells" in capsys.readouterr().out


def test_dropped_rows_of_the_runs_own_test_data_are_reported_if_known(runs: Runs):
    """The number is known for a separate test table, but not for test rows split off after rows were dropped."""
    gaps = sum(cell is None for cell in TABLES["filled"]["a"])
    path = write_csv(Path("u.csv"), TABLES["filled"]).resolve()
    apart = runs.train("drops-apart", path, missing="drop", test=str(path))
    report = figures(apart.folder)
    assert (report["rows"], report["rows_left_out"]) == (300 - gaps, gaps)
    assert figures(runs.train("drops-own", path, missing="drop").folder)["rows_left_out"] is None
    assert figures(runs["numbers"].folder)["rows_left_out"] == 0


def test_lines_have_no_trailing_spaces_and_names_are_shortened_only_to_fit(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A class name with a comma is quoted in a list; a loss with class weights says so."""
    class_names = {"yes": "Grignolino, old", "no": "Barolo"}
    columns = {**TABLES["numbers"], "y": [class_names[name] for name in TABLES["numbers"]["y"]]}
    run = runs.train("commas", write_csv(Path("t.csv"), columns).resolve(), class_weight="balanced")
    for width, head in (
        (80, "true↓ predicted→  Barolo  Grignolino, old"),
        (40, "true↓ predicted→  Barolo  Grignolino,…"),
    ):
        monkeypatch.setenv("COLUMNS", str(width))
        assert main(["evaluate", str(run.folder)]) == 0
        assert main(["info", str(run.folder)]) == 0
        out = capsys.readouterr().out
        lines = out.splitlines()
        assert head in lines
        assert all(line == line.rstrip() for line in lines)
        assert any("Barolo, 'Grignolino, old'" in line for line in lines)
        assert max(map(len, lines[1:])) <= width
        assert re.search(r"^loss +[\d.]+ \(cross-entropy,\s+balanced\)$", out, flags=re.MULTILINE)


# --- plots ---


@pytest.mark.parametrize("kind", ["numbers", "mixed", "digits", "mse", "value", "two"])
def test_the_plot_is_not_blank(runs: Runs, kind: str):
    assert main(["evaluate", str(runs[kind].folder), "--picture", "o.png"]) == 0
    pixels = imread("o.png")
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.05  # not blank


@pytest.mark.parametrize(("suffix", "head"), [(".png", b"\x89PNG"), (".SVG", b"<?xml"), (".pdf", b"%PDF")])
def test_the_plot_format_follows_the_file_suffix(runs: Runs, suffix: str, head: bytes):
    assert main(["evaluate", str(runs["numbers"].folder), "--picture", f"o{suffix}"]) == 0
    assert Path(f"o{suffix}").read_bytes().startswith(head)


def _texts(figure: Figure) -> list[str]:
    """Return the titles and texts of all panels."""
    return [text for axes in figure.axes for text in (axes.get_title(), *(t.get_text() for t in axes.texts))]


def test_the_plot_shows_the_metrics(runs: Runs):
    run = runs["numbers"]
    model = dp.load(run.folder)
    report = evaluate_file(model, run.data)
    assert report.confusion is not None
    texts = _texts(evaluation_figure(model, report))
    assert f"{int(report.confusion.trace())} of 300 right" in texts
    assert f"ROC of 'yes': area {report.figures['roc_auc']:.4f}" in texts
    assert f"Reliability: ECE {report.figures['ece']:.4f}" in texts
    assert {str(n) for n in report.confusion.ravel() if n} <= {*texts}
    two = dp.load(runs["two"].folder)
    two_report = evaluate_file(two, runs["two"].data)
    titles = [axes.get_title() for axes in evaluation_figure(two, two_report).axes]
    assert titles[0] == f"u: R² {two_report.by_class['u']['r2']:.3f}"
    assert titles[3] == f"rmse {two_report.by_class['v']['rmse']:.4g}"


def test_the_panels_are_aligned(runs: Runs):
    run = runs["numbers"]
    model = dp.load(run.folder)
    figure = evaluation_figure(model, evaluate_file(model, run.data))
    figure.canvas.draw()
    left, *others = (axes.get_window_extent() for axes in figure.axes)
    assert len(others) == 2
    assert all((left.y0, left.y1) == pytest.approx((axes.y0, axes.y1)) for axes in others)


def test_one_row_can_be_plotted(runs: Runs):
    """R² and ROC AUC are undefined for one row."""
    for kind in ("value", "numbers"):
        write_csv(Path("t.csv"), first(inputs_of(kind), 1))
        assert main(["evaluate", str(runs[kind].folder), "--data", "t.csv", "--picture", "o.png"]) == 0


# --- refused input ---


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--picture", "o.txt"], "--picture o.txt: the name must end in .png, .svg or .pdf"),
        (["--picture", "none/o.png"], "--picture none/o.png: there is no folder"),
        (["--json", "none/o.json"], "--json none/o.json: there is no folder"),
        (["--json", "o.csv"], "--json o.csv: the name must end in .json"),
        (["--json", "."], "--json .: this is a folder"),
        (["--data", "none.csv"], "none.csv: there is no such file"),
        (["--data", "digits"], "digits: there is no such file or folder"),
        (["--weights", "last"], "unknown weights 'last'"),
        (["--delimiter", ";;", "--data", "t.csv"], "--delimiter"),
        (["--daat", "t.csv"], "--daat"),
    ],
    ids=range(10),
)
def test_invalid_input_is_one_line_and_exit_code_2(
    runs: Runs, capsys: pytest.CaptureFixture[str], args: list[str], message: str
):
    write_csv(Path("t.csv"), TABLES["numbers"])
    assert main(["evaluate", str(runs["numbers"].folder), *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert [path.name for path in Path().iterdir()] == ["t.csv"]


@pytest.mark.parametrize("name", ["config.json", "l.json", "t.json", "test.json", "events.json"])
def test_files_of_a_run_and_its_data_are_not_overwritten(runs: Runs, capsys: pytest.CaptureFixture[str], name: str):
    """By its name or through a link; the data may have any name."""

    def change_data_paths(saved: dict[str, Any]) -> None:
        saved["data"], saved["test"] = str(Path("t.json").resolve()), str(Path("test.json").resolve())

    folder = runs["numbers"].copy(Path("run"), change_data_paths)
    Path("t.json").write_text("a,b,y\n")
    Path("test.json").write_text("a,b,y\n")
    Path("l.json").symlink_to(folder / "model.safetensors")
    Path("events.json").symlink_to(next(folder.glob("*tfevents*"), folder / "metrics.jsonl"))
    write_csv(Path("o.csv"), TABLES["numbers"])
    path = folder / name if name == "config.json" else Path(name)
    before = path.read_bytes()
    assert main(["evaluate", str(folder), "--data", "o.csv", "--json", str(path)]) == 2
    what = "the data itself" if name in ("t.json", "test.json") else "a file of the run itself"
    assert f"error: --json {path}: this is {what}; name another file" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_written_files_are_reported(runs: Runs, capsys: pytest.CaptureFixture[str]):
    """Twice: evaluate may overwrite files that it wrote before."""
    for _ in range(2):
        assert main(["evaluate", str(runs["numbers"].folder), "--json", "o.json", "--picture", "o.png"]) == 0
        assert capsys.readouterr().out.splitlines()[-2:] == ["json o.json", "picture o.png"]


def test_missing_or_changed_data_is_refused(runs: Runs, capsys: pytest.CaptureFixture[str]):
    """The run's own test rows cannot be evaluated then; another file can."""
    path = write_csv(Path("t.csv"), TABLES["numbers"]).resolve()
    run = runs.train("gone", path)
    shutil.copy(path, "other.csv")
    path.write_text(path.read_text().replace("yes", "no", 1))
    assert main(["evaluate", str(run.folder)]) == 2
    assert "are not those that the run was trained on" in capsys.readouterr().err
    path.unlink()
    assert main(["evaluate", str(run.folder)]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert main(["evaluate", str(run.folder), "--data", "other.csv"]) == 0

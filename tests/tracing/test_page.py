"""The HTML page of a trace: self-contained, with the trace's values, and interactive in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deltaprop as dp
from deltaprop.tracing.page import html_page
from deltaprop.tracing.trace import Trace
from deltaprop.tracing.worked_example import select_entries, steps

BROWSER = os.environ.get("DELTAPROP_BROWSER")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def tiny_trace() -> Trace:
    """Return the trace of a 2-3-1 network on two samples; the first weight is negative."""
    torch.manual_seed(0)
    model = dp.MLP([2, 3, 1], "sigmoid", "sigmoid")
    with torch.no_grad():
        model[0].weight[0, 0] = -0.75
    return dp.trace(model, "quadratic_loss", torch.rand(2, 2), torch.tensor([[0.0], [1.0]]))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if BROWSER is None:
        pytest.importorskip("playwright", reason='no playwright: pip install -e ".[browser]"')
    path = BROWSER or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium here; DELTAPROP_BROWSER may name one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """A function that opens the page of a trace; browser errors and network requests fail the test."""
    pages, errors, requests = [], [], []

    def open_page(trace: Trace, width: int = 1000, lr: float = 0.5, **options: Any) -> Any:
        path = tmp_path / "page.html"
        path.write_text(html_page(trace, lr), encoding="utf-8")
        page = chromium.new_page(viewport={"width": width, "height": 800}, **options)
        pages.append(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []
    assert {url.partition(":")[0] for url in requests} == {"file"}
    assert len(requests) == len(pages)


def node(page: Any, layer: int, neuron: int) -> str:
    """Return the accessible label of a neuron in the figure."""
    return str(page.locator(f'#net [data-node="{layer}-{neuron}"]').get_attribute("aria-label"))


def select_step(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_the_page_is_one_file_without_the_network():
    page = html_page(tiny_trace())
    assert not re.search(r"(src|href)\s*=|@import|url\((?!#)", page)
    assert [u for u in re.findall(r"https?://[^\s\"'<]+", page) if u != "http://www.w3.org/2000/svg"] == []
    assert "default-src 'none'" in page  # the browser refuses any request


def test_every_step_is_readable_without_scripts(chromium: Any, tmp_path: Path):
    trace = tiny_trace()
    path = tmp_path / "page.html"
    path.write_text(html_page(trace, 0.5), encoding="utf-8")
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    text = page.locator("#explanation").inner_text()
    for step in steps(trace, 0.5):
        for part in step.parts:
            assert part.equation in text
            for line in part.lines:
                assert line.text in text
    assert not page.locator("#net").is_visible()
    context.close()


def test_each_button_shows_its_step(open_page: Any):
    page = open_page(tiny_trace())
    names = ["input", "forward 1", "forward 2", "loss C", "δ²", "δ¹", "gradients", "update"]
    assert page.locator("#steps button").all_inner_texts() == names
    for name in names:
        select_step(page, name)
        assert page.locator("#explanation section:visible h2").all_inner_texts() == [name]
        assert page.locator('#steps button[aria-current="step"]').inner_text() == name


def test_values_appear_in_the_forward_and_deltas_in_the_backward_steps(open_page: Any):
    trace = tiny_trace()
    page = open_page(trace)
    a = f"{trace.layers[0].a[0, 1]:.3g}"
    delta = f"{trace.layers[0].delta[0, 1]:.3g}".replace("-", "−")
    assert ", a" not in node(page, 1, 1)
    select_step(page, "forward 1")
    assert f", a {a}" in node(page, 1, 1)
    assert ", a" not in node(page, 2, 0)
    select_step(page, "δ²")
    assert ", δ " in node(page, 2, 0)
    assert ", δ" not in node(page, 1, 1)
    select_step(page, "δ¹")
    assert f", δ {delta}" in node(page, 1, 1)
    assert page.locator("#way").inner_text() == "← Backward: δ, layer 1."


def test_edges_are_animated_in_the_direction_of_the_step(open_page: Any):
    page = open_page(tiny_trace(), reduced_motion="no-preference")
    for name, ends, edges, points in (("forward 1", "marker-end", 6, "0;1"), ("δ¹", "marker-start", 3, "1;0")):
        select_step(page, name)
        assert page.locator(f"#net .edge.active[{ends}]").count() == edges
        moving = page.locator("#net animateMotion")
        assert moving.count() == edges
        assert moving.first.get_attribute("keyPoints") == points


def test_reduced_motion_disables_the_animation(open_page: Any):
    page = open_page(tiny_trace(), reduced_motion="reduce")
    select_step(page, "δ¹")
    assert page.locator("#net animateMotion").count() == 0


def test_signs_and_the_current_step_are_visible_without_colour(open_page: Any):
    """Negative weights are dashed; the current step has thicker circles and a text."""
    trace = tiny_trace()
    page = open_page(trace)
    select_step(page, "forward 1")
    negative = int((trace.layers[0].weight < 0).sum() + (trace.layers[1].weight < 0).sum())
    dashed = page.eval_on_selector_all(
        "#net .edge", "edges => edges.filter(e => getComputedStyle(e).strokeDasharray !== 'none').length"
    )
    assert dashed == negative > 0
    widths = page.eval_on_selector_all(
        "#net .node circle", "nodes => nodes.map(n => parseFloat(getComputedStyle(n).strokeWidth))"
    )
    assert widths == [1.5, 1.5, 4, 4, 4, 1.5]
    assert page.locator("#way").inner_text() == "Forward →, layer 1."
    select_step(page, "gradients")  # there a dashed edge has a negative gradient
    dashed = page.eval_on_selector_all(
        "#net .edge", "edges => edges.filter(e => getComputedStyle(e).strokeDasharray !== 'none').length"
    )
    assert dashed == int(sum((layer.grad_weight < 0).sum() for layer in trace.layers))


def test_keys_and_buttons_change_the_step(open_page: Any):
    page = open_page(tiny_trace())
    assert page.locator("#back").is_disabled()
    page.keyboard.press("ArrowRight")
    page.locator("#next").click()
    assert page.locator("#explanation section:visible h2").inner_text() == "forward 2"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#explanation section:visible h2").inner_text() == "forward 1"


def test_play_advances_and_stops_at_the_last_step(open_page: Any):
    page = open_page(tiny_trace())
    page.clock.install()
    page.locator("#play").click()
    page.clock.run_for(2600)
    assert page.locator("#explanation section:visible h2").inner_text() == "forward 1"
    page.clock.run_for(30_000)
    assert page.locator("#explanation section:visible h2").inner_text() == "update"
    assert page.locator("#play").inner_text() == "play"


def test_a_neuron_selected_by_mouse_or_keys_has_its_sums_marked(open_page: Any):
    page = open_page(tiny_trace())
    select_step(page, "forward 1")
    page.locator('#net [data-node="1-2"]').click()
    assert all("[3]" in text for text in page.locator("li.chosen:visible").all_inner_texts())
    page.locator('#net [data-node="1-1"]').focus()
    page.keyboard.press("Enter")
    marked = page.locator("li.chosen:visible").all_inner_texts()
    assert len(marked) == 2
    assert all("[2]" in text for text in marked)


def test_each_sample_has_its_own_values(open_page: Any):
    trace = tiny_trace()
    page = open_page(trace)
    select_step(page, "forward 2")
    for row in range(2):
        page.locator("#sample").select_option(index=row)
        value = f"{trace.layers[1].a[row, 0]:.3g}"
        assert f", a {value}" in node(page, 2, 0)
        assert page.locator("#explanation li:visible").count() == 2  # z and a of this sample only


def test_gradients_and_updated_weights_are_shown_on_the_edges(open_page: Any):
    trace = tiny_trace()
    page = open_page(trace, lr=0.5)
    layer = trace.layers[1]
    for name, values in (("gradients", layer.grad_weight), ("update", layer.weight - 0.5 * layer.grad_weight)):
        select_step(page, name)
        labels = page.locator("#net text.halo").all_text_contents()
        for value in values[0].tolist():
            assert f"{value:.3g}".replace("-", "−") in labels
    assert f"{trace.loss_after(0.5):.3g}" in page.locator("#net").text_content()


@pytest.mark.parametrize("width", [320, 360, 600, 1000])
def test_the_page_fits_the_screen(open_page: Any, width: int):
    page = open_page(tiny_trace(), width)
    for name in ("forward 1", "δ¹", "gradients", "update"):
        select_step(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.eval_on_selector_all("#net text", "all => all.map(t => parseFloat(getComputedStyle(t).fontSize))")
        assert min(sizes) >= 10  # text does not shrink with the figure
        outside = page.evaluate(
            """() => { const s = document.querySelector("#net").getBoundingClientRect();
            return [...document.querySelectorAll("#net text, #net circle")].map(e => e.getBoundingClientRect())
              .filter(r => r.left < s.left - 1 || r.right > s.right + 1 || r.bottom > s.bottom + 1).length }"""
        )
        assert outside == 0
    heights = page.eval_on_selector_all("button:visible", "all => all.map(b => b.getBoundingClientRect().height)")
    assert min(heights) >= 40  # large enough for touch


def test_a_large_network_is_shown_in_part_with_the_current_step_in_view(open_page: Any):
    torch.manual_seed(0)
    trace = dp.trace(dp.MLP([64, 50, 10]), "cross_entropy", torch.rand(20, 64), torch.randint(10, (20,)))
    page = open_page(trace, 360)
    assert page.locator("#net .node circle").count() == 8 + 8 + 10
    assert "+ 56 more" in page.locator("#net").text_content()
    select_step(page, "δ²")
    figure, ring = page.locator("#figure").bounding_box(), page.locator("#net .node.now").first.bounding_box()
    assert figure["x"] <= ring["x"] < figure["x"] + figure["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    select_step(page, "gradients")
    few = page.locator("#explanation li:visible").count()
    page.locator("#all").check()
    assert page.locator("#explanation li:visible").count() > few > 0


def test_the_comparison_is_a_table(open_page: Any):
    page = open_page(tiny_trace())
    page.locator("summary").click()
    rows = page.locator("tbody tr").all_inner_texts()
    assert len(rows) == 12  # z, a, σ', δ and two gradients of two layers
    assert rows[3].split("\t")[:3] == ["δ¹", "(δ² W²) ⊙ σ'(z¹)", "[2, 3]"]


def short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−").replace("e−0", "e−") if value else "0"


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_the_figure_has_the_values_of_the_trace(large: bool):
    """Every value of the page's data, for the samples and neurons shown."""
    torch.manual_seed(1)
    sizes, rows = ([30, 20, 15], 9) if large else ([3, 4, 2], 3)
    trace = dp.trace(dp.MLP(sizes, "tanh"), "mse_loss", torch.randn(rows, sizes[0]), torch.rand(rows, sizes[-1]))
    page = html_page(trace, 0.3)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    selected = select_entries(trace)
    n = list(selected.rows)

    def texts(values: torch.Tensor) -> Any:
        return [[short(value) for value in row] for row in values.tolist()]

    for at, layer in enumerate(data["layers"]):
        neurons = list(selected.neurons[at])
        assert (layer["size"], layer["shown"]) == (sizes[at], neurons)
        if at == 0:
            assert layer["a"] == texts(trace.input[n][:, neurons])
            continue
        expected, below = trace.layers[at - 1], list(selected.neurons[at - 1])
        for name in ("z", "a", "delta"):
            assert layer[name] == texts(getattr(expected, name)[n][:, neurons]), name
        assert layer["weight"] == texts(expected.weight[neurons][:, below])
        assert layer["grad_weight"] == texts(expected.grad_weight[neurons][:, below])
        assert layer["new_weight"] == texts((expected.weight - 0.3 * expected.grad_weight)[neurons][:, below])
        assert layer["grad_bias"] == [short(v) for v in expected.grad_bias[neurons].tolist()]
        assert layer["new_bias"] == [short(v) for v in (expected.bias - 0.3 * expected.grad_bias)[neurons].tolist()]
        for name, values in (("size_of_weight", expected.weight), ("size_of_gradient", expected.grad_weight)):
            sizes_ = values[neurons][:, below].abs()
            assert torch.allclose(torch.tensor(layer[name]).double(), sizes_ / sizes_.max())
    assert data["target"] == texts(trace.target[n][:, list(selected.neurons[-1])])
    assert (data["loss"], data["loss_after"]) == (short(trace.loss), short(trace.loss_after(0.3)))
    labels = dp.trace(dp.MLP([2, 3]), "cross_entropy", torch.rand(2, 2), torch.tensor([2, 0]))
    data = json.loads(re.search(r'id="data">(.*?)</script>', html_page(labels), re.DOTALL)[1])  # type: ignore[index]
    assert data["target"] == [["0", "0", "1"], ["1", "0", "0"]]


def test_each_step_highlights_its_edges_and_neurons(open_page: Any):
    """2-3-1: six edges into layer 1, three into layer 2, one to C."""
    page = open_page(tiny_trace())
    edges = {"input": 0, "forward 1": 6, "forward 2": 3, "loss C": 1, "δ²": 1, "δ¹": 3, "gradients": 9, "update": 9}
    rings = {"input": 2, "forward 1": 3, "forward 2": 1, "loss C": 1, "δ²": 1, "δ¹": 3, "gradients": 4, "update": 4}
    layer_of = {"input": "0", "forward 1": "1", "forward 2": "2", "δ²": "2", "δ¹": "1"}
    for name in edges:
        select_step(page, name)
        assert page.locator("#net .edge.active").count() == edges[name], name
        assert page.locator("#net .node.now").count() == rings[name], name
        layers = page.eval_on_selector_all("#net .node.now[data-node]", "all => all.map(n => n.dataset.node[0])")
        assert set(layers) <= {layer_of[name]} if name in layer_of else True
    assert page.locator("#way").inner_text() == "One step of gradient descent."


def test_edges_join_the_right_neurons(open_page: Any):
    """Each edge joins the borders of two circles, and each pair of neurons in adjacent layers has one edge."""
    page = open_page(tiny_trace())
    select_step(page, "forward 1")
    ends = page.evaluate(
        """() => { const circles = [...document.querySelectorAll("#net .node[data-node]")].map(n => {
        const c = n.querySelector("circle"); return [n.dataset.node, +c.getAttribute("cx"), +c.getAttribute("cy")] });
        const at = (x, y) => circles.find(([, cx, cy]) => Math.abs(Math.hypot(cx - x, cy - y) - 22) < 0.5)?.[0];
        return [...document.querySelectorAll("#net .edge")].map(e => { const [a, b, c, d] =
        e.getAttribute("d").match(/-?[\\d.]+/g).map(Number); return [at(a, b), at(c, d)] }) }"""
    )
    pairs = [(a, b) for a, b in ends if a and b]
    assert sorted(pairs) == sorted([(f"0-{k}", f"1-{j}") for k in range(2) for j in range(3)]
                                   + [(f"1-{k}", "2-0") for k in range(3)])  # fmt: skip


def test_labels_of_nodes_and_edges_match_step_and_sample(open_page: Any):
    trace = tiny_trace()
    page = open_page(trace, lr=0.5)
    first, second = trace.layers
    for row in range(2):
        page.locator("#sample").select_option(index=row)
        select_step(page, "forward 1")
        assert node(page, 1, 2).endswith(f"z {short(float(first.z[row, 2]))}")
        labels = page.locator("#net text.halo").all_text_contents()
        assert {short(w) for w in first.weight.flatten().tolist()} <= set(labels)
        select_step(page, "loss C")
        assert node(page, 2, 0).endswith(f"y {short(float(trace.target[row, 0]))}")
        select_step(page, "δ¹")
        assert node(page, 1, 2).endswith(f"δ {short(float(first.delta[row, 2]))}")
        labels = page.locator("#net text.halo").all_text_contents()
        assert {short(w) for w in second.weight.flatten().tolist()} <= set(labels)
    select_step(page, "gradients")
    assert node(page, 1, 1).endswith(f"∂C/∂b {short(float(first.grad_bias[1]))}")
    select_step(page, "update")
    assert node(page, 1, 1).endswith(f"b {short(float(first.bias[1] - 0.5 * first.grad_bias[1]))}")


def test_c_is_hidden_before_the_loss_step(open_page: Any):
    trace = tiny_trace()
    page = open_page(trace)
    for name, value in (("forward 2", "·"), ("loss C", short(trace.loss)), ("δ²", short(trace.loss))):
        select_step(page, name)
        assert page.locator("#net .node:not([data-node]) text.value").text_content() == value


def test_larger_weights_have_thicker_edges(open_page: Any):
    trace = tiny_trace()
    page = open_page(trace)
    widths = page.eval_on_selector_all("#net .edge", "all => all.map(e => +e.getAttribute('stroke-width'))")[:6]
    sizes = trace.layers[0].weight.abs().flatten()  # neuron by neuron, in the order they are drawn
    assert torch.tensor(widths).argsort().tolist() == sizes.argsort().tolist()


def test_text_is_escaped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deltaprop.tracing.page.architecture", lambda trace: "</title><b>&")
    page = html_page(tiny_trace())
    assert "<b>" not in page
    assert "&lt;/title&gt;&lt;b&gt;&amp;" in page

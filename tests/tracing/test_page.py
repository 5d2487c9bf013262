"""The page of a trace stands alone, has the trace's numbers, and walks through the steps in a real browser."""

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

NAMED = os.environ.get("DELTAPROP_BROWSER")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def tiny() -> Trace:
    """A 2-3-1 net, two samples; the first weight is negative."""
    torch.manual_seed(0)
    model = dp.MLP([2, 3, 1], "sigmoid", "sigmoid")
    with torch.no_grad():
        model[0].weight[0, 0] = -0.75
    return dp.trace(model, "quadratic_loss", torch.rand(2, 2), torch.tensor([[0.0], [1.0]]))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if NAMED is None:
        pytest.importorskip("playwright", reason='no playwright: pip install -e ".[browser]"')
    path = NAMED or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium here; DELTAPROP_BROWSER may name one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def shown(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """Return a function that opens the page of a trace; whatever the page complains of fails the test."""
    pages, complaints, requests = [], [], []

    def show(found: Trace, width: int = 1000, lr: float = 0.5, **options: Any) -> Any:
        path = tmp_path / "page.html"
        path.write_text(html_page(found, lr), encoding="utf-8")
        page = chromium.new_page(viewport={"width": width, "height": 800}, **options)
        pages.append(page)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page

    yield show
    for page in pages:
        page.close()
    assert complaints == []
    assert {url.partition(":")[0] for url in requests} == {"file"}
    assert len(requests) == len(pages)


def node(page: Any, layer: int, neuron: int) -> str:
    """Return what the picture says of a neuron."""
    return str(page.locator(f'#net [data-node="{layer}-{neuron}"]').get_attribute("aria-label"))


def go(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_the_page_is_one_file_without_the_network():
    page = html_page(tiny())
    assert not re.search(r"(src|href)\s*=|@import|url\((?!#)", page)
    assert [u for u in re.findall(r"https?://[^\s\"'<]+", page) if u != "http://www.w3.org/2000/svg"] == []
    assert "default-src 'none'" in page  # the browser itself would refuse


def test_every_step_stands_in_the_page_without_scripts(chromium: Any, tmp_path: Path):
    found = tiny()
    path = tmp_path / "page.html"
    path.write_text(html_page(found, 0.5), encoding="utf-8")
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    text = page.locator("#explanation").inner_text()
    for step in steps(found, 0.5):
        for part in step.parts:
            assert part.equation in text
            for line in part.lines:
                assert line.text in text
    assert not page.locator("#net").is_visible()
    context.close()


def test_the_buttons_are_the_steps_and_show_one_at_a_time(shown: Any):
    page = shown(tiny())
    names = ["input", "forward 1", "forward 2", "loss C", "δ²", "δ¹", "gradients", "update"]
    assert page.locator("#steps button").all_inner_texts() == names
    for name in names:
        go(page, name)
        assert page.locator("#explanation section:visible h2").all_inner_texts() == [name]
        assert page.locator('#steps button[aria-current="step"]').inner_text() == name


def test_values_come_forward_and_deltas_back(shown: Any):
    found = tiny()
    page = shown(found)
    a = f"{found.layers[0].a[0, 1]:.3g}"
    delta = f"{found.layers[0].delta[0, 1]:.3g}".replace("-", "−")
    assert ", a" not in node(page, 1, 1)
    go(page, "forward 1")
    assert f", a {a}" in node(page, 1, 1)
    assert ", a" not in node(page, 2, 0)
    go(page, "δ²")
    assert ", δ " in node(page, 2, 0)
    assert ", δ" not in node(page, 1, 1)
    go(page, "δ¹")
    assert f", δ {delta}" in node(page, 1, 1)
    assert page.locator("#way").inner_text() == "← Backward: δ, layer 1."


def test_the_flow_goes_the_way_of_the_step(shown: Any):
    page = shown(tiny(), reduced_motion="no-preference")
    for name, ends, edges, points in (("forward 1", "marker-end", 6, "0;1"), ("δ¹", "marker-start", 3, "1;0")):
        go(page, name)
        assert page.locator(f"#net .edge.active[{ends}]").count() == edges
        moving = page.locator("#net animateMotion")
        assert moving.count() == edges
        assert moving.first.get_attribute("keyPoints") == points


def test_nothing_moves_for_those_who_ask_for_it(shown: Any):
    page = shown(tiny(), reduced_motion="reduce")
    go(page, "δ¹")
    assert page.locator("#net animateMotion").count() == 0


def test_the_sign_of_a_weight_and_the_step_are_told_without_colour(shown: Any):
    """Dashes for a minus, a thicker ring and words for where the step is."""
    found = tiny()
    page = shown(found)
    go(page, "forward 1")
    negative = int((found.layers[0].weight < 0).sum() + (found.layers[1].weight < 0).sum())
    dashed = page.eval_on_selector_all(
        "#net .edge", "edges => edges.filter(e => getComputedStyle(e).strokeDasharray !== 'none').length"
    )
    assert dashed == negative > 0
    widths = page.eval_on_selector_all(
        "#net .node circle", "nodes => nodes.map(n => parseFloat(getComputedStyle(n).strokeWidth))"
    )
    assert widths == [1.5, 1.5, 4, 4, 4, 1.5]
    assert page.locator("#way").inner_text() == "Forward →, layer 1."
    go(page, "gradients")  # there a dash is the minus of the gradient that stands at the line
    dashed = page.eval_on_selector_all(
        "#net .edge", "edges => edges.filter(e => getComputedStyle(e).strokeDasharray !== 'none').length"
    )
    assert dashed == int(sum((layer.grad_weight < 0).sum() for layer in found.layers))


def test_keys_and_arrows_walk_through(shown: Any):
    page = shown(tiny())
    assert page.locator("#back").is_disabled()
    page.keyboard.press("ArrowRight")
    page.locator("#next").click()
    assert page.locator("#explanation section:visible h2").inner_text() == "forward 2"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#explanation section:visible h2").inner_text() == "forward 1"


def test_play_walks_by_itself_and_stops_at_the_end(shown: Any):
    page = shown(tiny())
    page.clock.install()
    page.locator("#play").click()
    page.clock.run_for(2600)
    assert page.locator("#explanation section:visible h2").inner_text() == "forward 1"
    page.clock.run_for(30_000)
    assert page.locator("#explanation section:visible h2").inner_text() == "update"
    assert page.locator("#play").inner_text() == "play"


def test_a_neuron_is_chosen_by_mouse_or_keys_and_its_sums_are_marked(shown: Any):
    page = shown(tiny())
    go(page, "forward 1")
    page.locator('#net [data-node="1-2"]').click()
    assert all("[3]" in text for text in page.locator("li.chosen:visible").all_inner_texts())
    page.locator('#net [data-node="1-1"]').focus()
    page.keyboard.press("Enter")
    marked = page.locator("li.chosen:visible").all_inner_texts()
    assert len(marked) == 2
    assert all("[2]" in text for text in marked)


def test_each_sample_has_its_own_numbers(shown: Any):
    found = tiny()
    page = shown(found)
    go(page, "forward 2")
    for row in range(2):
        page.locator("#sample").select_option(index=row)
        value = f"{found.layers[1].a[row, 0]:.3g}"
        assert f", a {value}" in node(page, 2, 0)
        assert page.locator("#explanation li:visible").count() == 2  # z and a of this sample alone


def test_gradients_and_the_update_stand_on_the_edges(shown: Any):
    found = tiny()
    page = shown(found, lr=0.5)
    layer = found.layers[1]
    for name, values in (("gradients", layer.grad_weight), ("update", layer.weight - 0.5 * layer.grad_weight)):
        go(page, name)
        labels = page.locator("#net text.halo").all_text_contents()
        for value in values[0].tolist():
            assert f"{value:.3g}".replace("-", "−") in labels
    assert f"{found.loss_after(0.5):.3g}" in page.locator("#net").text_content()


@pytest.mark.parametrize("width", [320, 360, 600, 1000])
def test_it_fits_the_screen(shown: Any, width: int):
    page = shown(tiny(), width)
    for name in ("forward 1", "δ¹", "gradients", "update"):
        go(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.eval_on_selector_all("#net text", "all => all.map(t => parseFloat(getComputedStyle(t).fontSize))")
        assert min(sizes) >= 10  # not shrunk with the picture
        outside = page.evaluate(
            """() => { const s = document.querySelector("#net").getBoundingClientRect();
            return [...document.querySelectorAll("#net text, #net circle")].map(e => e.getBoundingClientRect())
              .filter(r => r.left < s.left - 1 || r.right > s.right + 1 || r.bottom > s.bottom + 1).length }"""
        )
        assert outside == 0
    heights = page.eval_on_selector_all("button:visible", "all => all.map(b => b.getBoundingClientRect().height)")
    assert min(heights) >= 40  # for a thumb


def test_a_large_net_is_shown_in_part_and_what_matters_is_in_view(shown: Any):
    torch.manual_seed(0)
    found = dp.trace(dp.MLP([64, 50, 10]), "cross_entropy", torch.rand(20, 64), torch.randint(10, (20,)))
    page = shown(found, 360)
    assert page.locator("#net .node circle").count() == 8 + 8 + 10
    assert "+ 56 more" in page.locator("#net").text_content()
    go(page, "δ²")
    figure, ring = page.locator("#figure").bounding_box(), page.locator("#net .node.now").first.bounding_box()
    assert figure["x"] <= ring["x"] < figure["x"] + figure["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    go(page, "gradients")
    few = page.locator("#explanation li:visible").count()
    page.locator("#all").check()
    assert page.locator("#explanation li:visible").count() > few > 0


def test_what_others_have_for_the_numbers_is_a_table(shown: Any):
    page = shown(tiny())
    page.locator("summary").click()
    rows = page.locator("tbody tr").all_inner_texts()
    assert len(rows) == 12  # z, a, σ', δ and two gradients of two layers
    assert rows[3].split("\t")[:3] == ["δ¹", "(δ² W²) ⊙ σ'(z¹)", "[2, 3]"]


def short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−").replace("e−0", "e−") if value else "0"


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_the_picture_has_the_numbers_of_the_trace(large: bool):
    """Every number of the page's data, of the samples and neurons that are shown."""
    torch.manual_seed(1)
    sizes, rows = ([30, 20, 15], 9) if large else ([3, 4, 2], 3)
    found = dp.trace(dp.MLP(sizes, "tanh"), "mse_loss", torch.randn(rows, sizes[0]), torch.rand(rows, sizes[-1]))
    page = html_page(found, 0.3)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    shown = select_entries(found)
    n = list(shown.rows)

    def texts(values: torch.Tensor) -> Any:
        return [[short(value) for value in row] for row in values.tolist()]

    for at, layer in enumerate(data["layers"]):
        kept = list(shown.neurons[at])
        assert (layer["size"], layer["shown"]) == (sizes[at], kept)
        if at == 0:
            assert layer["a"] == texts(found.input[n][:, kept])
            continue
        of, below = found.layers[at - 1], list(shown.neurons[at - 1])
        for name in ("z", "a", "delta"):
            assert layer[name] == texts(getattr(of, name)[n][:, kept]), name
        assert layer["weight"] == texts(of.weight[kept][:, below])
        assert layer["grad_weight"] == texts(of.grad_weight[kept][:, below])
        assert layer["new_weight"] == texts((of.weight - 0.3 * of.grad_weight)[kept][:, below])
        assert layer["grad_bias"] == [short(v) for v in of.grad_bias[kept].tolist()]
        assert layer["new_bias"] == [short(v) for v in (of.bias - 0.3 * of.grad_bias)[kept].tolist()]
        for name, values in (("size_of_weight", of.weight), ("size_of_gradient", of.grad_weight)):
            sizes_ = values[kept][:, below].abs()
            assert torch.allclose(torch.tensor(layer[name]).double(), sizes_ / sizes_.max())
    assert data["target"] == texts(found.target[n][:, list(shown.neurons[-1])])
    assert (data["loss"], data["loss_after"]) == (short(found.loss), short(found.loss_after(0.3)))
    labels = dp.trace(dp.MLP([2, 3]), "cross_entropy", torch.rand(2, 2), torch.tensor([2, 0]))
    data = json.loads(re.search(r'id="data">(.*?)</script>', html_page(labels), re.DOTALL)[1])  # type: ignore[index]
    assert data["target"] == [["0", "0", "1"], ["1", "0", "0"]]


def test_each_step_lights_up_its_own_edges_and_rings(shown: Any):
    """2-3-1: six edges below layer 1, three below layer 2, one to C."""
    page = shown(tiny())
    edges = {"input": 0, "forward 1": 6, "forward 2": 3, "loss C": 1, "δ²": 1, "δ¹": 3, "gradients": 9, "update": 9}
    rings = {"input": 2, "forward 1": 3, "forward 2": 1, "loss C": 1, "δ²": 1, "δ¹": 3, "gradients": 4, "update": 4}
    of = {"input": "0", "forward 1": "1", "forward 2": "2", "δ²": "2", "δ¹": "1"}
    for name in edges:
        go(page, name)
        assert page.locator("#net .edge.active").count() == edges[name], name
        assert page.locator("#net .node.now").count() == rings[name], name
        layers = page.eval_on_selector_all("#net .node.now[data-node]", "all => all.map(n => n.dataset.node[0])")
        assert set(layers) <= {of[name]} if name in of else True
    assert page.locator("#way").inner_text() == "One step of gradient descent."


def test_edges_join_the_neurons_they_belong_to(shown: Any):
    """Each begins and ends at the rim of a circle, every pair of neurons of neighbouring layers once."""
    page = shown(tiny())
    go(page, "forward 1")
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


def test_what_stands_at_nodes_and_edges_is_of_the_step_and_the_sample(shown: Any):
    found = tiny()
    page = shown(found, lr=0.5)
    first, second = found.layers
    for row in range(2):
        page.locator("#sample").select_option(index=row)
        go(page, "forward 1")
        assert node(page, 1, 2).endswith(f"z {short(float(first.z[row, 2]))}")
        labels = page.locator("#net text.halo").all_text_contents()
        assert {short(w) for w in first.weight.flatten().tolist()} <= set(labels)
        go(page, "loss C")
        assert node(page, 2, 0).endswith(f"y {short(float(found.target[row, 0]))}")
        go(page, "δ¹")
        assert node(page, 1, 2).endswith(f"δ {short(float(first.delta[row, 2]))}")
        labels = page.locator("#net text.halo").all_text_contents()
        assert {short(w) for w in second.weight.flatten().tolist()} <= set(labels)
    go(page, "gradients")
    assert node(page, 1, 1).endswith(f"∂C/∂b {short(float(first.grad_bias[1]))}")
    go(page, "update")
    assert node(page, 1, 1).endswith(f"b {short(float(first.bias[1] - 0.5 * first.grad_bias[1]))}")


def test_c_is_not_there_before_the_loss(shown: Any):
    found = tiny()
    page = shown(found)
    for name, value in (("forward 2", "·"), ("loss C", short(found.loss)), ("δ²", short(found.loss))):
        go(page, name)
        assert page.locator("#net .node:not([data-node]) text.value").text_content() == value


def test_the_thicker_a_line_the_larger_its_weight(shown: Any):
    found = tiny()
    page = shown(found)
    widths = page.eval_on_selector_all("#net .edge", "all => all.map(e => +e.getAttribute('stroke-width'))")[:6]
    sizes = found.layers[0].weight.abs().flatten()  # target by target, as they are drawn
    assert torch.tensor(widths).argsort().tolist() == sizes.argsort().tolist()


def test_text_cannot_become_markup(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deltaprop.tracing.page.architecture", lambda trace: "</title><b>&")
    page = html_page(tiny())
    assert "<b>" not in page
    assert "&lt;/title&gt;&lt;b&gt;&amp;" in page

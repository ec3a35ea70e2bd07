"""The chart of what would have been, as SVG."""

from xml.etree import ElementTree

from processors.what_if import Led, Step, outcome
from tools.step_chart import chart
from tools.what_if_table import page

SVG = "{http://www.w3.org/2000/svg}"


def led(model: str | None, cost: float | None = 1e9) -> Led:
    return Led(model, None if model is None else 1.0, cost, ())


def steps(*pairs: tuple[Led, Led]) -> list[Step]:
    return [Step(i * 300_000, was, would) for i, (was, would) in enumerate(pairs)]


def test_it_is_well_formed_and_names_each_leader_once_whatever_its_name() -> None:
    odd = 'p/<m> & "co"'
    told = outcome(
        "panes",
        steps((led(odd), led("p/b")), (led(odd), led(None, None)), (led("p/b"), led("p/b", 2e9))),
        limited=True,
    )
    root = ElementTree.fromstring(chart(told, "code · TEST: what if <x> & y"))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "code · TEST: what if <x> & y" in texts
    for name in (odd, "p/b", "nobody"):
        assert texts.count(name) == 1
    paths = list(root.iter(f"{SVG}path"))
    assert len(paths) == 2 + 1 + 2  # leaders; one run of costs, and two around a gap
    width = float(root.attrib["width"])
    for path in paths:
        numbers = path.attrib["d"].replace("M", " ").replace("H", " ").replace("V", " ")
        found = [float(n) for n in numbers.removesuffix("h4").split()]
        assert all(0 <= n <= width for n in found)


def test_nothing_to_draw_is_drawn_too() -> None:
    ElementTree.fromstring(chart(outcome("panes", [], limited=False), "nothing"))
    ElementTree.fromstring(
        chart(outcome("panes", steps((led("p/a", None), led("p/a", 0.0))), False), "one")
    )


def test_the_table_is_no_wider_than_100_columns() -> None:
    import io

    from rich.console import Console

    long = "provider/" + "m" * 60
    told = outcome("panes", steps(*[(led(long), led("p/b"))] * 3), limited=False)
    out = io.StringIO()
    Console(file=out, width=100).print(page(told, "t"))
    text = out.getvalue()
    assert "3 closes" in text
    assert max(map(len, text.splitlines())) <= 100

"""A page of pairs as HTML: data into `assets/page.html.j2`. Text from data is escaped; no script may run."""

import base64
import hashlib
import math
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined

from shared.types import AnswerStatus
from stage1_priors.inspect.catalogue import GROUPS, ORDERS, PAGE_ROWS, Catalogue, Histogram, Query
from stage1_priors.inspect.view import Pair, View

WIDTH, HEIGHT = 560, 220
"""The histogram's frame, SVG units."""
LEFT, TOP, RIGHT, BOTTOM = 66, 10, 536, 172
"""The plot inside it."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of the histogram: a link to its rows. Frame: SVG units."""

    x: float
    y: float
    width: float
    height: float
    label: str
    href: str
    chosen: bool
    """Whether the page shows this bar's rows alone."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """The histogram, ready to be drawn."""

    bars: list[Bar]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    summary: str
    num_unknown: int


def render(view: View, query: Query, *, embed: bool) -> str:
    """One page.

    Args:
        view: The opened store.
        query: Which pairs.
        embed: Put the pictures into the page and leave out what needs a server.

    Raises:
        DataError: The query names a split that the store does not hold, or a row is damaged.
    """
    rows = view.catalogue.select(query)
    num_pages = max(1, math.ceil(len(rows) / PAGE_ROWS))
    page = min(query.page, num_pages)
    pairs = view.pairs(rows[(page - 1) * PAGE_ROWS : page * PAGE_ROWS])
    counts = view.catalogue.status_counts()
    style = _text("shared", "look.css") + _text("stage1_priors.inspect", "assets/style.css")
    context = {
        "attrs": view.store.attrs,
        "store": view.store.path.name,
        "num_rows": view.store.num_rows,
        "num_done": len(view.catalogue),
        "missing": view.missing,
        "counts": counts,
        "num_failed": sum(count for status, count in counts.items() if not status.has_prior),
        "groups": GROUPS,
        "orders": ORDERS,
        "splits": view.catalogue.splits,
        "chart": _chart(view.catalogue, query),
        "plot": (LEFT, TOP, RIGHT, BOTTOM),
        "size": (WIDTH, HEIGHT),
        "query": query,
        "narrowed": query.address() != Query().address(),
        "num_found": len(rows),
        "page": page,
        "num_pages": num_pages,
        "pages": page_numbers(page, num_pages),
        "pairs": pairs,
        "image_of": lambda pair: _image_source(view, pair, embed),
        "prior_of": lambda pair: _prior_source(view, pair, embed),
        "embed": embed,
        "style": style,
        "style_hash": "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
        "meaning": MEANINGS,
    }
    return _environment().get_template("page.html.j2").render(context)


MEANINGS: dict[AnswerStatus, str] = {
    AnswerStatus.OK: "one usable box",
    AnswerStatus.MULTIPLE: "several boxes, the first was used",
    AnswerStatus.CLIPPED: "a box that left the image and was clipped to it",
    AnswerStatus.NO_BOX: "text without a box",
    AnswerStatus.EMPTY: "no text",
    AnswerStatus.TRUNCATED: "cut by the token limit before a whole box",
    AnswerStatus.REPEATED: "the answer looped",
    AnswerStatus.DEGENERATE: "a box of no area",
    AnswerStatus.OUT_OF_RANGE: "a box outside the image",
    AnswerStatus.IMAGE_ERROR: "the image could not be read",
    AnswerStatus.ENGINE_ERROR: "the engine failed",
    AnswerStatus.IMPORTED: "a mask from outside, no model was asked",
    AnswerStatus.NOT_IMPORTED: "no mask outside, no model was asked",
}
"""What a status says, in the page's words."""


def page_numbers(page: int, num_pages: int) -> list[int]:
    """Numbers to link to: the first, the last, and two on either side of `page`; rising."""
    near = {number for number in range(page - 2, page + 3) if 1 <= number <= num_pages}
    return sorted(near | {1, num_pages})


def _chart(catalogue: Catalogue, query: Query) -> Chart | None:
    found = catalogue.histogram()
    if found is None:
        return None
    step = _tick_step(int(found.count_K.max()))
    most = step * math.ceil(found.count_K.max() / step)
    scale = (BOTTOM - TOP) / most
    lowest, highest = float(found.edge_K1[0]), float(found.edge_K1[-1])
    peak = int(found.count_K.argmax())
    return Chart(
        bars=_bars(found, query, scale),
        x_ticks=[
            (round(LEFT + (RIGHT - LEFT) * (mark - lowest) / (highest - lowest), 1), text)
            for mark, text in round_marks(lowest, highest)
        ],
        y_ticks=[(round(BOTTOM - value * scale, 1), f"{value:,}") for value in range(0, most + 1, step)],
        summary=(
            f"Histogram of {int(found.count_K.sum()):,} confidences from {lowest:.2f} to {highest:.2f}; most, "
            f"{int(found.count_K[peak]):,}, from {found.edge_K1[peak]:.2f} to {found.edge_K1[peak + 1]:.2f}."
        ),
        num_unknown=found.num_unknown,
    )


def _bars(found: Histogram, query: Query, scale: float) -> list[Bar]:
    """Bars of the bins; the last bin has no upper bound, as the highest value belongs to it."""
    width = (RIGHT - LEFT) / len(found.count_K)
    bars = []
    for at, count in enumerate(found.count_K.tolist()):
        low = float(found.edge_K1[at])
        high = float(found.edge_K1[at + 1]) if at + 1 < len(found.count_K) else None
        bars.append(
            Bar(
                x=round(LEFT + at * width + 1, 1),
                y=round(BOTTOM - count * scale, 1),
                width=round(width - 2, 1),
                height=round(count * scale, 1),
                label=f"{low:.2f} to {found.edge_K1[at + 1]:.2f}: {count:,} answers",
                href=query.address(low=low, high=high),
                chosen=(query.low, query.high) == (low, high),
            )
        )
    return bars


def round_marks(low: float, high: float) -> list[tuple[float, str]]:
    """At most seven multiples of 1, 2 or 5 times a power of ten within [low, high], and their texts."""
    rough = (high - low) / 6
    power = math.floor(math.log10(rough))
    step = next(factor * 10.0**power for factor in (1, 2, 5, 10) if factor * 10.0**power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(number * step, f"{number * step:.{decimals}f}") for number in range(first, last + 1)]


def _tick_step(most: int) -> int:
    """A step of 1, 2 or 5 times a power of ten that makes about four ticks."""
    rough = max(1, most / 4)
    power = 10 ** math.floor(math.log10(rough))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough))


def _image_source(view: View, pair: Pair, embed: bool) -> str | None:
    if view.missing or pair.status is AnswerStatus.IMAGE_ERROR:
        return None
    return _data_uri("jpeg", view.image_jpeg(pair.row)) if embed else f"/image/{pair.row}.jpg"


def _prior_source(view: View, pair: Pair, embed: bool) -> str | None:
    if not pair.status.has_prior:
        return None
    return _data_uri("png", view.prior_png(pair.row)) if embed else f"/prior/{pair.row}.png"


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(lambda name: _text("stage1_priors.inspect", f"assets/{name}")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")

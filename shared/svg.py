"""The look of charts that are SVG files of their own.

Every element carries its colours and strokes as attributes, which all readers of SVG know, converters to PDF among
them. The style sheet only changes the colours where the reader's system is dark.
"""

from html import escape

SERIES = 7
"""Colours of series that there are (Okabe and Ito's palette, and more)."""

_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#a9648c", "#8a6d00", "#3a87b8", "#555555")
_DARK = ("#56b4e9", "#ff8c42", "#2cc79b", "#e39cc3", "#e0c24a", "#9fd3f5", "#bbbbbb")
_TEXT = ("#1b1f23", "#e6e8ea")
"""Light and dark, as all colours below."""

_COLOURS = {
    "bg": ("fill", "#ffffff", "#14171a"),
    "band": ("fill", "#f0f4f8", "#20272e"),
    "muted": ("fill", "#57606a", "#a3adb7"),
    "grid": ("stroke", "#e1e5e9", "#2f363d"),
    "span": ("stroke", "#57606a", "#a3adb7"),
    "prior": ("stroke", "#57606a", "#a3adb7"),
    **{f"f{i}": ("fill", *pair) for i, pair in enumerate(zip(_LIGHT, _DARK, strict=True))},
    **{f"l{i}": ("stroke", *pair) for i, pair in enumerate(zip(_LIGHT, _DARK, strict=True))},
}
"""What the classes with a colour are painted with: attribute, light, dark."""

_SHAPES = {
    "strong": 'font-weight="600"',
    "end": 'text-anchor="end"',
    "mid": 'text-anchor="middle"',
    "dashed": 'stroke-dasharray="5 4"',
    "line": 'fill="none" stroke-width="1.8"',
    "spread": 'stroke-width="1.4"',
}
"""Attributes of the classes without one."""

_DARK_SHEET = "\n".join(
    [
        "@media (prefers-color-scheme: dark) {",
        f"  text {{ fill: {_TEXT[1]}; }}",
        *(f"  .{name} {{ {attribute}: {dark}; }}" for name, (attribute, _, dark) in _COLOURS.items()),
        "}",
    ]
)


def look(*names: str) -> str:
    """Attributes of an element: its classes, and their colours and strokes in plain words.

    Args:
        names: `bg`, `band`, `muted`, `grid`, `span`, `prior`, `f<i>` (filled as series i), `l<i>` (a line of series
            i), `strong`, `end`, `mid`, `dashed`, `line` or `spread`.
    """
    said = [f'class="{" ".join(names)}"']
    for name in names:
        if name in _COLOURS:
            attribute, light, _ = _COLOURS[name]
            said.append(f'{attribute}="{light}"')
        else:
            said.append(_SHAPES[name])
    return " ".join(said)


def head(width: float, height: float, title: str, description: str) -> str:
    """The beginning of a file: root, title, description, style sheet and background; `</svg>` ends it.

    Args:
        width: User units, as the height.
        height: x goes to the right, y down.
        title: What the chart shows.
        description: The chart in words, for those who cannot see it.
    """
    fonts = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t d" '
        f'fill="{_TEXT[0]}" font-family="{fonts}" font-size="12">\n'
        f'<title id="t">{escape(title)}</title>\n<desc id="d">{escape(description)}</desc>'
        f"<style>\n{_DARK_SHEET}\n</style>\n"
        f'<rect {look("bg")} width="{width}" height="{height}" rx="6"/>'
    )

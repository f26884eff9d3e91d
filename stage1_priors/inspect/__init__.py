"""Look at a prior store in a browser: what the answers were, and their soft masks over the images.

A page holds two dozen pairs and only their pictures; the small columns of the store are read once, when it is opened.
So a store of 120,000 pairs opens like a small one. No script runs in the page: filters and page numbers are links and
a form, answered by a server on this machine (`server.py`), or absent in the one file that `--out` writes.
"""

from pathlib import Path

from shared.errors import DataError
from stage1_priors.inspect.catalogue import Query


def write_inspection(store: Path, out: Path, query: Query, root: str = "") -> int:
    """Write one page of a store as a file that stands alone.

    Args:
        store: The store.
        out: HTML file.
        query: Which pairs.
        root: Where the data set lies now; "": where it lay when the store was written.

    Returns:
        Number of pairs that fit the query, of which the file shows one page.

    Raises:
        DataError: No store, nothing in it yet, an impossible query, or the file cannot be written.
    """
    from stage1_priors.inspect.page import render
    from stage1_priors.inspect.view import open_view

    view = open_view(store, root)
    html = render(view, query, embed=True)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html, "utf-8")
    except OSError as error:
        raise DataError(f"{out}: the page could not be written ({error.strerror})") from error
    return len(view.catalogue.select(query))

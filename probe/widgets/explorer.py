"""The view of records in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from probe.errors import InputError
from probe.widgets.contents import gather

if TYPE_CHECKING:
    from probe.widgets.live import Explorer

__all__ = ["explore"]


def explore(given: Any, image: Any = None, masks: Any = None, *, labels: Sequence[str] | None = None) -> Explorer:
    """A view to click through in JupyterLab: words, the image with the map, every layer and head; an ``Explorer``.

    >>> view = probe.explore(run, masks={"red circle": mask})
    >>> view.words, view.layer, view.head                        # what was clicked
    >>> view.words = "blue square"                               # what is to be shown
    >>> view.save("view.html")                                   # the same for a colleague without a kernel

    Parameters
    ----------
    given : a ``Run`` or a record; or several of one image, such as those of several checkpoints or models.
    image : the image that was recorded (a list where the prompt had several); by default the ``Run``'s own. Without one, maps stand
        alone.
    masks : phrase -> (height, width) mask, keys as for ``score_heads``: outlines, and scores with controls beside each map.
    labels : a name for each record, such as its step; by default its model's.

    Raises
    ------
    InputError
        If the packages of the extra ``widgets`` are missing, images or masks differ in size from the record's, or something is no
        record.
    """
    shown = gather(given, image=image, masks=masks, labels=labels)
    try:
        from probe.widgets.live import Explorer
    except ModuleNotFoundError as error:
        raise InputError(
            f"A view in a notebook needs {error.name!r}, which is not installed; install it with `pip install "
            "'groundprobe[widgets]'`, or write a page with probe.widgets.write_html, which needs nothing more."
        ) from error
    return Explorer(shown)

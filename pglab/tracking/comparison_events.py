"""A comparison in TensorBoard beside its variants' runs: the layout once for all, its settings and tables, its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pglab.tracking.events import EventRuns
from pglab.tracking.files import file_error
from pglab.tracking.layout import Layout

RUN = "tensorboard/comparison"


def write_comparison(folder: Path, layout: Layout, texts: Mapping[str, str], figures: Sequence[Path] = ()) -> None:
    """Write the comparison's own run, in the place of what was written of it before.

    Args:
        folder: the comparison's.
        layout: of the custom-scalars page.
        texts: tag -> Markdown.
        figures: PNG files.

    Raises:
        PglabError: where the disk refuses.
    """
    try:
        for path in sorted((folder / RUN).glob("*tfevents*")):
            path.unlink()
        images = {path.stem: path.read_bytes() for path in figures}
    except OSError as error:
        raise file_error(folder / RUN, error) from error
    events = EventRuns(folder)
    try:
        events.layout(RUN, layout)
        for tag, markdown in texts.items():
            events.text(RUN, tag, markdown)
        for name, png in images.items():
            events.image(RUN, f"figures/{name}", png)
    finally:
        events.close()

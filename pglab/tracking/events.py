"""TensorBoard event files, one TensorBoard run per folder, written without importing TensorBoard before the first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pglab.tracking.files import file_error
from pglab.tracking.layout import Layout


def event_files(folder: Path) -> list[Path]:
    """Every event file below `folder`, sorted."""
    return sorted(path for path in folder.rglob("*tfevents*") if path.is_file() and not path.is_symlink())


class EventRuns:
    """The TensorBoard runs below one folder; a run's event file is opened when it is first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, Any] = {}

    def step(
        self,
        run: str,
        step: int,
        values: Mapping[str, float],
        wall_time: float,
        histograms: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the scalars and histograms (protos) of one step as one event. Raises PglabError where the disk refuses."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        summary.value.extend(Summary.Value(tag=tag, histo=proto) for tag, proto in (histograms or {}).items())
        self.add(run, summary, step, wall_time)

    def text(self, run: str, tag: str, markdown: str, step: int = 0) -> None:
        """Write a text that TensorBoard renders as Markdown."""
        from torch.utils.tensorboard.summary import text

        self.add(run, text(tag, markdown), step)

    def layout(self, run: str, layout: Layout) -> None:
        """Write a custom-scalars layout; TensorBoard merges those of several runs by their sections' titles."""
        from torch.utils.tensorboard.summary import custom_scalars

        self.add(run, custom_scalars(layout))

    def image(self, run: str, tag: str, png: bytes) -> None:
        """Write a PNG as it is."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # the header stands first in a PNG
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        self.add(run, Summary(value=[Summary.Value(tag=tag, image=image)]))

    def add(self, run: str, summary: Any, step: int = 0, wall_time: float | None = None) -> None:
        """Write a summary as one event. Raises PglabError where the disk refuses."""
        try:
            self._writer(run).add_summary(summary, step, wall_time)
        except OSError as error:
            raise file_error(self.folder / run, error) from error

    def flush(self, sync: bool = False) -> None:
        """Wait until everything is in the files; with `sync`, on the disk."""
        for run, writer in self._writers.items():
            try:
                writer.flush()  # joins the writer's queue, so nothing is on its way afterwards
                if sync:
                    for path in (self.folder / run).glob("*tfevents*"):
                        with open(path, "rb+") as file:
                            os.fsync(file.fileno())
            except OSError as error:
                raise file_error(self.folder / run, error) from error

    def close(self) -> None:
        """Flush and close every file; the first refusal is raised after all are closed."""
        refused: tuple[str, OSError] | None = None
        for run, writer in self._writers.items():
            try:
                writer.close()
            except OSError as error:
                refused = refused or (run, error)
        self._writers.clear()
        if refused is not None:
            raise file_error(self.folder / refused[0], refused[1]) from refused[1]

    def _writer(self, run: str) -> Any:
        if run not in self._writers:
            # SummaryWriter's own lower half: it takes a whole summary, so a step is one event and not one per tag.
            from torch.utils.tensorboard import FileWriter

            folder = self.folder / run
            # A file is named by second, host, process and a count within it. In a container two sessions can agree in
            # all four, and the later would overwrite the earlier: number them.
            session = len(list(folder.glob("*tfevents*")))
            self._writers[run] = FileWriter(str(folder), flush_secs=10, filename_suffix=f".{session}")
        return self._writers[run]

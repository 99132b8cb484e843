"""A measurement in TensorBoard: a run per pair, so that pairs overlay; scalars along training, histograms, the figures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from pglab.lab.measuring import Measurement
from pglab.lab.variance_report import rows_of
from pglab.tracking.files import file_error
from pglab.tracking.layout import INTERVALS, variance_layout

SCALARS = (
    "nsr", "nsr_times_steps", "trace", "mse", "bias_squared", "cosine", "pairwise_cosine", "critic_mse",
    "critic_bias_squared", "critic_cosine", "snr", "effective_rows", "zero", "milliseconds", "per_evaluations",
    "per_steps", "per_seconds",
)  # fmt: skip


def write_events(measurement: Measurement, folder: str | os.PathLike[str], figures: list[str]) -> None:
    """Write event files below `folder`/tensorboard, in the place of those of an earlier measurement. Raises PglabError where
    the disk refuses."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import custom_scalars

    root = Path(folder) / "tensorboard"
    try:
        if root.exists():
            shutil.rmtree(root)
        writers: dict[str, SummaryWriter] = {}
        for m in measurement:
            several = len({x.subject.member for x in measurement}) > 1
            norms = np.linalg.norm(m.head, axis=-1)  # [J, H]
            goal = m.reference.gradient
            cosines = m.head @ goal / np.maximum(norms * np.linalg.norm(goal), 1e-30)
            for j, row in enumerate(rows_of(m)):
                run = row["pair"].replace(" / ", "+") + (f"/{m.subject.member.replace(' ', '')}" if several else "")
                writer = writers.setdefault(run, SummaryWriter(str(root / run)))
                for name in SCALARS:
                    value = row.get(name)
                    if f"variance/{name}" in INTERVALS and isinstance(value, tuple) and np.isfinite(value[:3]).all():
                        # The chart of an interval wants three tags with the same steps.
                        for end, bound in zip(("value", "low", "high"), value[:3], strict=True):
                            writer.add_scalar(f"variance/{name}/{end}", bound, m.subject.steps)
                    value = value[0] if isinstance(value, tuple) else value
                    if value is not None and np.isfinite(value):
                        writer.add_scalar(f"variance/{name}", value, m.subject.steps)
                writer.add_histogram("gradient/norm", norms[j], m.subject.steps)
                if m.reference.supported:
                    writer.add_histogram("gradient/cosine_to_grad_J", cosines[j], m.subject.steps)
        if figures:
            from matplotlib.image import imread

            writer = writers.setdefault("figures", SummaryWriter(str(root / "figures")))
            for figure in figures:
                writer.add_image(
                    f"figures/{figure.removesuffix('.png')}", imread(Path(folder) / figure), 0, dataformats="HWC"
                )
        for writer in list(writers.values())[:1]:  # once: it holds for all runs
            writer._get_file_writer().add_summary(custom_scalars(variance_layout()), 0)
        for writer in writers.values():
            writer.close()
    except OSError as error:
        raise file_error(root, error) from error

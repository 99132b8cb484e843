"""TensorBoard's HParams page: what each member was trained with, in the member's own run.

A session is a member; the seeds of one variant (and of one swept setting) are one group, of which the page shows one row with
the metrics averaged. The summaries are the plugin's own: `SummaryWriter.add_hparams` would make a run of its own for each.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pglab.tracking.markdown import printable

Value = float | str
METRICS = {"charts/episodic_return": "return", "eval/return": "evaluation return", "gradient/nsr": "NSR"}


@dataclass(frozen=True)
class Field:
    """A column of the page."""

    name: str
    number: bool
    """Its values are numbers; texts otherwise."""
    differs: bool
    """Not the same in all rows: the page shows such columns first."""


def fields_of(trials: Sequence[Mapping[str, Value]], tuned: Sequence[str] = ()) -> list[Field]:
    """The columns of all trials together, in the order of their first appearance; `tuned` are values not yet known."""
    found = []
    for name in dict.fromkeys(name for trial in trials for name in trial):
        values = [trial.get(name) for trial in trials]
        number = all(isinstance(v, int | float) for v in values if v is not None)
        found.append(Field(name, number, len(set(values)) > 1 or name in tuned))
    return found


def experiment(fields: Sequence[Field]) -> Any:
    """The summary that names columns and metrics.

    Columns of texts have no list of their values. With one, the page would leave out every row with another value, and of
    several runs in one folder it reads the first one's summary only.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    infos = [
        api_pb2.HParamInfo(
            name=field.name,
            type=api_pb2.DATA_TYPE_FLOAT64 if field.number else api_pb2.DATA_TYPE_STRING,
            differs=field.differs,
        )
        for field in fields
    ]
    metrics = [
        api_pb2.MetricInfo(
            name=api_pb2.MetricName(tag=tag),
            display_name=title,
            dataset_type=api_pb2.DATASET_VALIDATION if tag.startswith("eval/") else api_pb2.DATASET_TRAINING,
        )
        for tag, title in METRICS.items()
    ]
    found = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=time.time())
    return _summary(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=found))


def session_start(values: Mapping[str, Value], fields: Sequence[Field], group: str) -> Any:
    """The summary that one member begins with; `group` is shared by the seeds that are averaged."""
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    info = SessionStartInfo(group_name=printable(group), start_time_secs=time.time())
    numbers = {field.name for field in fields if field.number}
    for name, value in values.items():
        if name in numbers and not isinstance(value, str):
            info.hparams[name].number_value = float(value)
        else:
            info.hparams[name].string_value = printable(value if isinstance(value, str) else f"{value:g}")
    return _summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def session_end() -> Any:
    """The summary that a member ends with when it has had all its steps."""
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    info = SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return _summary(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _summary(tag: str, data: Any) -> Any:
    # tensorboard.plugins.hparams.summary does the same, and imports TensorFlow.
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])

"""What result files hold. Written by `runners`, read by `analysis`."""

from __future__ import annotations

import pyarrow as pa

from hoard.records.cells import CELL_KEY as CELL_KEY

SCHEMA_VERSION = 1
STATUSES = ("finished", "failed", "interrupted", "running", "pending")

# episodes.parquet of a run: one row per evaluation episode.
EPISODE_SCHEMA = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("variant", pa.string()),  # "" is the headline policy
        ("update", pa.int64()),
        ("env_step", pa.int64()),
        ("final", pa.bool_()),
        ("episode", pa.int32()),
        ("eval_seed", pa.int64()),
        ("return", pa.float64()),
        ("length", pa.int32()),
        ("success", pa.bool_()),  # null: the environment has no such signal
        ("score", pa.float64()),  # null: the dataset has no reference returns
    ]
)

# evaluations.parquet of a run: one row per evaluation. Times are no result: they stand apart from the episodes, which
# the same run gives again to the bit.
EVALUATION_SCHEMA = pa.schema(
    [
        *(EPISODE_SCHEMA.field(name) for name in ("schema_version", "variant", "update", "env_step", "final")),
        ("training_time", pa.float64()),  # seconds of training before it, evaluations left out, over all starts
    ]
)

# evaluations.parquet of a suite: the rows of all its cells.
TIMES_SCHEMA = pa.schema(
    [
        EVALUATION_SCHEMA.field("schema_version"),
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        *(field for field in EVALUATION_SCHEMA if field.name != "schema_version"),
    ]
)

# episodes.parquet of a suite: the rows of all its cells.
TABLE_SCHEMA = pa.schema(
    [
        EPISODE_SCHEMA.field("schema_version"),
        ("suite", pa.string()),
        ("method", pa.string()),
        ("algo", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        *(field for field in EPISODE_SCHEMA if field.name != "schema_version"),
        ("run", pa.string()),
    ]
)
NULLABLE = {"success", "score"}

# cells.json of a suite: one entry per cell.
CELL_FIELDS = (
    "method", "algo", "dataset", "seed", "run", "status", "error",
    "overrides", "wall_time", "updates_per_second", "data_hash",
)  # fmt: skip

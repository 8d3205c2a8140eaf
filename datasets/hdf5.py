"""A guard for HDF5 files of unknown origin."""

from __future__ import annotations

import math

from h5py import h5d

_DEFLATE = 1100  # deflate packs at most 1:1032
_SLACK = 4096  # bytes


def why_not_to_read(node: h5d.DatasetID) -> str:
    """Why an array must not be read into memory, or ''.

    A small file can declare a huge array that was never written; reading it would fill memory with zeros. It can also
    name another file for its numbers.
    """
    plan = node.get_create_plist()
    if plan.get_layout() == h5d.VIRTUAL or plan.get_external_count():
        return "is kept in another file; all must be in this one"
    if math.prod(node.shape) * node.dtype.itemsize > _DEFLATE * node.get_storage_size() + _SLACK:
        return f"has shape {node.shape}, but the file holds no data for it"
    return ""

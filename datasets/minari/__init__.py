"""Minari datasets: read from disk into `Dataset`, fetched from the hub, and written for our recipes.

`store` knows the folders and the locks, `metadata` what a dataset says of itself, `episodes` the files of the three
storages, `reader` makes a `Dataset` of them, `writer` stores a recording, `hub` fetches. `references` has reference
returns for the ``mujoco/*`` sets, which come without any.
"""

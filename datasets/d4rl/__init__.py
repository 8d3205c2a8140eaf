"""D4RL's HDF5 files, read by h5py alone: no d4rl package, no gym, no mujoco-py.

Ids
    ``d4rl:NAME``                one of D4RL's 155 names (`hoard.datasets.d4rl.table`), as ``d4rl:hopper-medium-v2``;
                                 looked for in D4RL_DATASET_DIR, else ~/.d4rl/datasets, and downloaded if not there
    ``d4rl:PATH.hdf5``           any file in D4RL's layout; one with a D4RL name must be D4RL's file, and is read as it
    ``d4rl:PATH.hdf5+as=NAME``   a file of your own that is to be evaluated and scored as NAME
    ``d4rl:PATH.hdf5+as=ENV``    a file of your own that is to be evaluated in a Gymnasium environment, as
                                 ``+as=Hopper-v5`` or ``+as=my_package:MyEnv-v0``, which imports my_package first
    ``...+as=ENV+ref=LOW,HIGH``  the same with reference returns for scores: of a random policy and of an expert
    ``...+full``                 every transition that happened (below); goes with all of these

One file holds all episodes end to end; `terminals` marks true termination, `timeouts` where an episode was cut.

By default reading equals `d4rl.qlearning_dataset`, as every published score does: s_{t+1} is the next row, a time-out
row is dropped (its next row belongs to another episode) even where it also terminates, and the last row of the file is
lost. On a terminal row the stored next observation is the next episode's first one; `terminated` masks it. Files
without `timeouts` (v0) are cut by the limit of their environment, as the package does it: its count starts at 1 instead
of 0 after a terminal row, so there some episodes lose their last but one transition and keep one into the next episode.

With ``+full`` nothing is dropped and nothing crosses an episode. It is refused where the truth is not in the file:

- files with `next_observations` (gym-MuJoCo v2): time-out rows, terminal rows and the last row get their own s_{t+1};
- maze2d, which is one endless walk: time-out rows are kept, their next row is their successor, and the reward of t is
  paid for s_{t+1} as the environment does it (the files pay for s_t).

Other known errors of the files are listed in `hoard.datasets.d4rl.table.DEFECTS`. A warning at every load tells those
that change what the data means. Notes in `Dataset.notes` (in the data card) say how many rows were left out.
"""

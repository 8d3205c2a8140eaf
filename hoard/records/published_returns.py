"""Mean returns published for Minari's `mujoco/*` sets, which datasets take as references and reports as a scale."""

# (random, expert) as listed publicly for Minari's sets: mean returns of a random policy and of the episodes in
# mujoco/*/expert-v0. The experts of Hopper (1,086 episodes), HalfCheetah and Walker2d (1,000 each) were checked against
# a second public script that prints the same numbers; the others have the one source.
PUBLISHED = {
    "Ant-v5": (-64.548, 6672.696),
    "HalfCheetah-v5": (-294.665, 16242.925),
    "Hopper-v5": (16.856, 3857.804),
    "Humanoid-v5": (115.373, 8602.850),
    "InvertedDoublePendulum-v5": (45.858, 9353.377),
    "InvertedPendulum-v5": (5.196, 1000.0),
    "Pusher-v5": (-152.194, -24.835),
    "Reacher-v5": (-43.381, -4.344),
    "Swimmer-v5": (1.739, 355.445),
    "Walker2d-v5": (1.482, 6847.793),
}

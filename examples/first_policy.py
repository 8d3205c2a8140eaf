"""From data to a policy one can watch, in a minute or two: `python examples/first_policy.py`."""

import hoard

data = hoard.load("hoard/pointmaze/umaze-v0")
print(f"{data.id}: {len(data):,} steps in {data.num_episodes} episodes, mean return {data.returns.mean():.1f}")

options = {"updates": 8000, "hidden": (128, 128), "lr": 1e-3, "target_tau": 0.02, "reward_mode": "none"}
run = hoard.train("iql", data.id, eval_every=4000, final_eval_episodes=20, **options)

print("score of 20 fresh episodes:", hoard.evaluate(run, episodes=20)["score"].mean())
print("written:", *hoard.watch(run, out="first_policy", episodes=2))

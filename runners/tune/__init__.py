"""The search for hyper-parameters: `hoard tune`, on Optuna."""

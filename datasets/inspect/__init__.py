"""Looking at datasets: the data card, the check, and the replay in other versions of an environment."""

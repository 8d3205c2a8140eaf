"""The ground floor: result schema, run folders, names, atomic files, locks and errors. Needs no torch.

`runners` writes with it what `analysis` reads with it; neither imports the other.
"""

from synthetic import quick, sweep  # noqa: F401

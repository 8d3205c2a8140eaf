from synthetic import archive, quick, sweep  # noqa: F401

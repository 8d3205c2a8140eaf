from synthetic import archive, filmed, quick, sweep  # noqa: F401

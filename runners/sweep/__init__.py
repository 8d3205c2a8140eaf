"""Many runs: suites (`suite`), the sweep that works them off (`schedule`), and where its cells run (`local`, `ray`)."""

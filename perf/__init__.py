"""Measurements of speed and memory, run by hand: perf.train_step against TRL, perf.memory against tokens and vocabulary."""

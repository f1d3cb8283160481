"""Which micro-batch goes next: decided once, for the coordinator that sends it and the planner that simulates it."""

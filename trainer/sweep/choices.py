"""What a sweep may be told by name, without Optuna: its help names them too."""

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "none")
KEEPS = ("front", "all")
DEFAULT_TRIALS = 20
DEFAULT_PRUNE_AT = (0.25, 0.5, 0.75)

"""Sweeps: a space of `train`'s flags, trials drawn from it by Optuna, and what became of them.

May import `evaluation` and below, and Optuna (extra `[sweep]`). A way to draw goes to `draws.py`, a way to write a
domain to `space.py`; only `trainer/cli/sweep.py` imports this room, so that no other verb needs Optuna.
"""

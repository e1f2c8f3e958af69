"""The arithmetic of trajkit, on arrays alone: see :mod:`trajkit.kernels.api`."""

"""How a value is extended beyond the window: one file an estimator, and one line in a table.

With x_T and ``last`` the window's last step and the value there, h = x* - x_T, (mean, slope) the
fitted line about x̄, and (x_a, a), (x_b, b) two checkpoints:

    anchored    last + slope h
    line        mean + slope (x* - x̄)
    damped      last + slope (L h)                           L: the damping, 0 to 2
    two-point   a + (x* - x_a)/(x_b - x_a) (b - a)           arXiv 2601.04537, equation 4
    shrunk      last + slope h max(0, (R² - null)/(1 - null))
    wiener      last + (last - first) h/(x_T - x_1) max(0, 1 - 1/t²)
    mean        mean
    ema         Σ D^(T - t) y_t / Σ D^(T - t)                D: the decay
    rank-k      first + lines along the K largest directions of the deltas; anchored: last + slopes
    expo        b + alpha (b - a)                            arXiv 2404.16792

null is the median R² of a driftless walk on the window, t that of the drift.

Float32 (float64 for float64), each operation rounded once, and one rounding into the tensor's own
dtype. A new estimator is one file here and its class in :data:`trajkit.fits.estimators.table`; the
command line takes its name, its help and its parameters from there. Nothing here imports numpy.

table       all of them, by name, and how one is made from options
estimator   what every one of them is: parameters, two steps, what it reads, how it is evaluated
slopes      those that follow the fitted line
pairs       those that go through two checkpoints
combined    those that add up all of them
anchored    through the last checkpoint, along the slope
line        the fitted line itself
damped      anchored, over a multiple of the horizon
weighted    each element by its own part
shrunk      anchored, by what of R² a driftless walk would not have had
wiener      the drift, by what of it is not noise
mean        the average of the window's checkpoints
ema         a moving average of them
rank_k      lines in the few directions along which the run moved most
two_point   through two checkpoints
expo        beyond the last checkpoint, away from the first
gates       which elements may move, as people write it
"""

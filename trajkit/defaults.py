"""What is taken where nothing is said: one place for the library and the command line."""

DEFAULT_MEMORY_BYTES = 2**30
"""every command's budget unless ``--memory`` says otherwise, above interpreter and libraries"""


DEFAULT_STORE = "trajkit.zarr"
DEFAULT_CODEC = "zstd"


DEFAULT_THRESHOLD = 0.7

DEFAULT_FIT = "default"


DEFAULT_OUT = "report"

DEFAULT_DAMPING = 0.3
"""on a published GRPO trace, ten checkpoints ahead, it beat both 1 and holding the last value"""

DEFAULT_DECAY = 0.5
"""of a moving average: on the run in data/ better than .8 at every horizon judged"""

DEFAULT_ESTIMATOR = "anchored"

DEFAULT_ROUNDING = "nearest"

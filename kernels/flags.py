"""What a fit says about one element besides its numbers: a bit mask of uint8."""

FLAG_STATIC = 1
"""never changed (by value) in two or more checkpoints: no R², slope 0"""
FLAG_INVALID = 2
"""NaN or Inf in at least one checkpoint: no numbers at all"""
FLAG_FEW_DISTINCT = 4
"""fewer than ``few`` distinct values"""
FLAG_SMALL_RANGE = 8
"""max - min at most ``min_range`` (only where ``min_range`` > 0)"""
FLAG_BELOW_HALF_ULP = 16
"""the fitted line moves less than half an ulp (of the dtype, at the mean) over the whole window"""
FLAG_BELOW_THRESHOLD = 32
"""R² is not above the threshold that the fit was made with (NaN is not); set by who knows it"""

HELD_FLAGS = FLAG_STATIC | FLAG_INVALID
"""an element with one of these cannot be extrapolated"""

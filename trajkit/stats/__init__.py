"""Statistics of a step axis: pure numbers, no store and no files.

axis        the step axis and its moments
nulls       what R² a driftless walk scores
walks       what Durbin-Watson and drift t it scores
histograms  quantiles and shares of counts in bins
combinations  checkpoints as sums of others
"""

"""Statistics of a step axis: pure numbers, no store and no files.

axis        the step axis and its moments
nulls       what R² a driftless walk scores
walks       what Durbin-Watson and drift t it scores
flips       walks made of a run's own changes, columns that move together
rounding    what walks and lines score through a narrow number format
student     tails of Student's t
movement    how often elements change and turn back
drift       how many elements drift, at a false discovery rate
verdict     straight, drifting, wandering or static, by stated rules
gram        how a whole model moved, from inner products of its changes
turning     breaks in the mean rate of change
intervals   prediction intervals for one element
histograms  quantiles and shares of counts in bins
combinations  checkpoints as sums of others
"""

"""Evidence: drift or random walk, when a run turned, how far its lines can be trusted.

movement    verb: how the weights moved between checkpoints, and where they turned; as it is kept
gram        one streaming pass over the store: inner products of all changes
deltas      another: inner products of all displacements, for lines in a few directions
beside      whether two runs drift the same way
metrics     metrics of a run beside its movement: the best step, and what came after it
backtest    verb: forecasts made at earlier checkpoints, judged on later ones
origins     where forecasts start, and how far they reach
errors      one streaming pass over the store: sums of errors
candidates  which rules are compared, and what the sums say of each
choice      which rule is taken for a horizon, by what was known before
kept        a backtest as it is kept in the store
"""

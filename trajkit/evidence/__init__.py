"""Evidence: how far the lines of a run can be trusted.

backtest    verb: forecasts made at earlier checkpoints, judged on later ones
origins     where forecasts start, and how far they reach
errors      one streaming pass over the store: sums of errors
candidates  which rules are compared, and what the sums say of each
choice      which rule is taken for a horizon, by what was known before
kept        a backtest as it is kept in the store
"""

"""Guided extrapolation: the run's own outputs choose among rules for its weights.

The logits of the window's first and last checkpoint, extrapolated to a step to come, are the
reference; the rule is taken whose weights give outputs nearest to it on some probes, and judged on
others. No reward, no gradient and no later checkpoint is looked at.

candidates  the rules that are tried, and module families
parts       probes that choose, and probes that judge
reference   extrapolated logits at the probes, and KL from them
trials      one model that is given one rule's weights after another
search      which rules are tried, in what order
plan        how many forwards that takes
choice      the search for one target, and what came of it
horizon     the furthest target that outputs still bear out
guided      verb: search, then write
kept        where searches are kept in a store
"""

"""Shorter training: what is learned from real steps while a run is alive, and the jump it allows.

rules      which drift a jump follows: one line a rule
pooled     the pooled drift with a significance gate and forgetting
segments   rules that look at one segment alone: two points, a gate on R²
jump       parameters moved by n steps at once, and put back bit for bit
horizon    how far to jump, judged by the reward of the steps after
reground   m real steps, then a jump, and again: the loop's state between a trainer's steps
ledger     what every jump did, a line each
"""

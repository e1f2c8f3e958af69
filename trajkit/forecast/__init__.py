"""Checkpoints that the run is heading for: request -> plan -> run -> result.

extrapolate  verb: write checkpoints to come
request      what is asked, as a value
guidance     why outputs chose the rule
auto        the rule that the backtest took, in place of an estimator
evaluation   the request with everything looked up that it names; the rule that elements follow
plan         what will be written, checked without writing
combine      what checkpoints weigh in an average, and their sum
cap          how far a jump may go
chunks       a few chunks of that: a task, and what does it
result       what is going to be, and was, written
cautions     what a reader of the outcome should know
values       the same without files: the values of a step to come
rules        what happens to each tensor
template     shard layout and side files from another checkpoint
provenance   trajkit.json
modelcard    its README for the Hub
loading      whether it loads in transformers
adapters     whether an adapter is one
"""

"""Checkpoints that the run is heading for.

extrapolate  verb: write checkpoints to come
result       what is going to be, and was, written
chunks       a few chunks of that
values       the same, to be read instead
rules        what happens to each tensor
template     shard layout and side files from another checkpoint
modelcard    its README for the Hub
loading      whether it loads in transformers
"""

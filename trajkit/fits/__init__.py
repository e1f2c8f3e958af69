"""A line through every element: planned, computed chunk by chunk, kept in the store.

fit         verb: choose the window, plan, commit
window      which checkpoints
plan        how much memory
vector      the fit of one flat vector: a task a chunk, results written in order
tasks       the fit of one chunk, in any thread or process
source      where the codes come from
devices     the CPU or a CUDA device as one worker sees it
record      how a fit was made and what it found
fields      what the fields of a record may be
arrays      its arrays in the store
kept        a fit as it is read
commit      put there whole, and dropped
check       every byte against its checksum
sums        sums that are kept, and going on from them
sample      some elements of a chunk, to see how often they move
walks       what a driftless walk with the same increments scores beside a fit
table       one row a tensor
dataframe   tables as polars has them, for whoever has it
paper       the filters and statistics of arXiv 2601.04537
estimators  how a value is extended beyond the window: one file an estimator, gates
"""

"""The trajectory store: every checkpoint of a run as plain Zarr v3, one atomic commit each.

codecs      how a chunk becomes bytes: one line a codec
array       a sharded Zarr v3 array on disk
chunks      many chunks read in one call
walk        one chunk at every checkpoint, in order
rows        one row written chunk after chunk
native      chunks read by compiled code
events      changes read from sparse frames
documents   JSON documents spelled one way
signed      a record that is kept beside the checkpoints, with its own digest
commit      what one atomic replace makes true
store       the store, opened for reading
stream      a checkpoint's tensors, one after another
history     one tensor over all checkpoints
tensors     tensors and elements, bit for bit; what verbs take as a run
lock        the one writer
place       the folder that a store is made in
frame_source  what a frame is made of: files, or a copy in memory
writer      appending checkpoints
heal        what a killed writer left, removed
rewritten   steps whose files are no longer what was ingested
ingest_stream  a stream of weight deltas, appended as checkpoints
stream_source  a step of such a stream as a frame
description    the files that restoring a recorded step writes
export      verb: a store's steps written as a stream of weight deltas
release     files of ingested checkpoints deleted, once proved to be in the store
options     those that a store can be made with
account     what an ingest would do, and what it did
ingest      verb: append what a trainer wrote
output      where a verb may write a folder
restore     verb: write a checkpoint back
convert     verb: the store written anew with another codec
audit       frames checked while a fit passes over them
metrics     a run's own metrics, kept beside its checkpoints
check       every byte against its checksum
compare     checkpoints on disk against the store
"""

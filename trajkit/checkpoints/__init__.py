"""Checkpoints on disk: which tensors lie at which bytes, of which step, written by whom.

parse       documents from disk: typed, bounded, one error
header      one safetensors file, checked before any data is read
checkpoint  which tensors lie at which bytes of which files
trainers    how trainers lay out their step folders: one line a layout
naming      steps that the user names: a pattern, or STEP=PATH
series      the step folders of a run, in order
leftovers   what lies in step folders beside what is held
converters  which tool makes safetensors of other formats
layout      flat vectors: where every element of a model lies
reader      one checkpoint as flat vectors
cast        floating-point bits rounded to another dtype
config      the model's config.json
record      what is kept of a checkpoint's files
tied        tensors that share their values
shards      which safetensors files a folder to be written consists of
target      where a folder may be written: what may be replaced
deltas      a stream of weight deltas: anchors, and what changed between
metrics     metrics by training step: a trainer's log, or a file of them
folder      a checkpoint folder written whole or not at all
"""

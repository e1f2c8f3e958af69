"""Checkpoints on disk: which tensors lie at which bytes, of which step, written by whom.

header      one safetensors file, checked before any data is read
checkpoint  which tensors lie at which bytes of which files
trainers    how trainers lay out their step folders: one line a layout
series      the step folders of a run, in order
converters  which tool makes safetensors of other formats
layout      flat vectors: where every element of a model lies
reader      one checkpoint as flat vectors
cast        floating-point bits rounded to another dtype
config      the model's config.json
record      what is kept of a checkpoint's files
tied        tensors that share their values
shards      which safetensors files a folder to be written consists of
folder      a checkpoint folder written whole or not at all
"""

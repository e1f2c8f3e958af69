"""Adapters to other libraries' classes, imported by nobody inside.

trl        TRL's trainers and the Hugging Face Trainer: record every step, re-ground
recording  the recorder as their callback
verl       the recorder inside verl's actor workers; not run under verl here
zarr       zarr-python: stores of the sparse codec
"""

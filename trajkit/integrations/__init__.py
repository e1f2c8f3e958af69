"""Adapters to other libraries' classes, imported by nobody inside.

trl        TRL's trainers and the Hugging Face Trainer: record every step, re-ground
recording  the recorder as their callback
zarr       zarr-python: stores of the sparse codec
"""

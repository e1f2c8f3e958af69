"""What the models of a run say: its checkpoints in memory, token by token.

libraries  torch and transformers, or a line that says how to get them
weights    one model's weights, wherever they are
placing    where they go in a model
models     a model from the store
"""

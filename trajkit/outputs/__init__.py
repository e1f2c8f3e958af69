"""What the models of a run say: its checkpoints in memory, token by token.

libraries  torch and transformers, or a line that says how to get them
weights    one model's weights, wherever they are
placing    where they go in a model
models     a model from the store
probes     prompts with fixed responses, and their tokens
sampling   responses sampled from a model
journal    the file they go to, whole or resumable
logits     decoding with extrapolated logits
generate   verb: responses of a step to come
"""

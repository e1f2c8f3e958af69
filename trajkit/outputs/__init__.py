"""What the models of a run say: its checkpoints in memory, token by token.

libraries  torch and transformers, or a line that says how to get them
weights    one model's weights, wherever they are
placing    where they go in a model
models     a model from the store
probes     prompts with fixed responses, and their tokens
batching   those of like lengths together
scoring    log p, entropy and rank of every token under one model
logprobs   verb: that for every checkpoint
rows       arrays with a row a checkpoint, whole or absent
noise      what two passes of one checkpoint differ by
sources    the models to go through, and those yet to come
kept       log-probabilities as they are kept
check      every byte of that against its digest
distances  KL between whole distributions
drift      how far the outputs moved, checkpoint by checkpoint
linearity  a line through every token
skill      forecasts of that, judged on later checkpoints
sampling   responses sampled from a model
journal    the file they go to, whole or resumable
logits     decoding with extrapolated logits
layers     modules chosen by name, and what passes through them
means      mean activations in float64
decomposition  a linear layer's change: of its input, its weights, their product
shares     that change in numbers
activations  verb: both under every checkpoint
activations_kept  where they are kept
activations_fit   a line through every mean
evaluation  them for lm-evaluation-harness
generate   verb: responses of a step to come
guide/     verb: the rule for weights that outputs choose; extrapolate_guided
"""

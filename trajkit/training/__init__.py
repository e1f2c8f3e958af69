"""While a run is alive: every step recorded, and what its real steps allow to be jumped.

recorder      every step into the store, without checkpoint folders
tensors       a live model's tensors by their names in a checkpoint
host_copy     a copy of them in host memory, as the store's flat vectors
side_files    config and tokenizer files of a model in memory
rules      which drift a jump follows: one line a rule
pooled     the pooled drift with a significance gate and forgetting
segments   rules that look at one segment alone: two points, a gate on R²
jump       parameters moved by n steps at once, and put back bit for bit
horizon    how far to jump, judged by the reward of the steps after
reground   m real steps, then a jump, and again: the loop's state between a trainer's steps
ledger     what every jump did, a line each

Between a trainer's runs, checkpoint files in and out, any trainer:

driver     segment after segment, resumable after a kill
advance    one segment: the trainer's real steps, then the jump
template   the trainer's command, with places to fill
trainer    the trainer as a process of its own
stream     a segment's checkpoints through a rule, range by range
guided     a segment's outputs choose the jump
restart    the folder that a trainer starts its next segment from
progress   how far a run of segments has come, in one file
"""

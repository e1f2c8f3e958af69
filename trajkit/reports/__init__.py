"""What trajkit tells people about a store: the page, the check, the summary.

report        verb: the page about a fit
verify        verb: every byte, and checkpoints on disk
info          what a store holds
page, tables  facts and figures put into HTML
trust         how far lines can be trusted: the backtest
guide_page    which weights the outputs choose
evidence      how a run moved, its turns and metrics, in words
beside        another run set beside it
findings      its numbers in plain words
figures       matplotlib, and nobody else
plots         pictures of the run and its elements
module_plots  pictures of its modules
outputs_section  what it says of outputs, where some were scored
outputs_plots    pictures of those
activations_section  what it says of activations, where some were measured
activations_plots    pictures of those
movement_plots  metrics over speed and direction
gallery       elements worth looking at
modules       layer and module from a tensor's name
palette       the colours
markup        text and SVG made safe for a page
"""

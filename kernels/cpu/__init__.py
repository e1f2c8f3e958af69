"""The CPU backend: compiled loops over tiles, and their launchers.

launch       what the api calls
compile      how functions are compiled and kept
bits         reinterpreting bits; formats' values
frames       decode and sum, tile by tile
tile         one tile in scratch memory
solve        from sums to lines
stats        statistics of lines
skill        squared errors of forecasts
extrapolate  new checkpoints, rounded once
coding       frame coding
shuffle      bit planes to codes
skill        sums of forecasts' errors
events       sums from changes alone
launch_events  what the api of changes calls
sparse       sparse chunks: gaps and values of what changed
read         chunks from files
read_sparse  sparse chunks from files
skill       errors of forecasts against the run's own later checkpoints
"""

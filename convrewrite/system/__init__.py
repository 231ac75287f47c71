"""Files, processes and streams: whole files, processes that watch each other, what a kill leaves."""

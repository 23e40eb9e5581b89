"""A night's work: hundreds of jobs out of one table, through one ComfyUI or many, with nothing lost.

`jobs` reads the table, `outputs` keeps what came of it; neither knows what runs the jobs. `workflow`, `server` and
`run` are the engine that drives ComfyUI.
"""

"""Fuzz test of every place where files come in: seeded cases with damaged and hostile files.

`make fuzz N=2000` runs N cases; `SEED=`, `ONLY=archive` and `CASE=archive-17` choose others. Two
outcomes are allowed: it works, or it is refused in one paragraph with exit status 2, within
two seconds of processor time, a bound on memory, and without touching anything outside.

- `values`, `damage`, `tensors`, `tables`, `tars`: what is done to text, bytes, files and formats
- `places`: one module per place where files come in: valid files, damage, the door
- `guard`: what a case may not do, watched by an audit hook
- `worker`: the process that runs cases; `harness`: the one that starts it, waits and counts
"""
